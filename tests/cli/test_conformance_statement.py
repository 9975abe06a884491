"""The conformance statement: in the order of PS3.2, and as the code has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dicomai.cli import conformance, produced
from dicomai.results.objects import KINDS, kind_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
# PS3.2 annex A, the parts that every statement has.
SECTIONS = (
    "1 Overview",
    "2 Contents",
    "3 Introduction",
    "4 Networking",
    "4.1 Implementation model",
    "4.1.1 Data flow",
    "4.1.2 Application entities",
    "4.1.3 Sequence",
    "4.2 Application entities",
    "4.3 Network interfaces",
    "4.4 Configuration",
    "5 Media",
    "6 Character sets",
    "7 Security",
    "8 Annexes",
    "8.1 Contents of objects",
    "8.2 Private attributes",
    "8.3 Coded terms",
    "8.4 Greyscale image consistency",
    "8.5 SOP classes",
    "8.6 Private transfer syntaxes",
)
PARTS = ("SOP classes", "Association policies")


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_its_tables_are_what_the_code_prints(page: str) -> None:
    assert sorted(conformance.named(page)) == sorted(conformance.TABLES)
    assert page == conformance.filled(page), (
        "print them anew: python -m dicomai.cli.conformance docs/conformance.md"
    )


def test_it_follows_the_order_of_the_standard(page: str) -> None:
    headings = re.findall(r"^#{2,4} (\d.*)$", page, re.MULTILINE)
    assert [each for each in headings if each in SECTIONS] == list(SECTIONS)
    entities = re.split(r"^#### 4\.2\.\d ", page.partition("### 4.3")[0], flags=re.MULTILINE)[1:]
    for each in entities:
        parts = re.findall(r"^##### (.*)$", each, re.MULTILINE)
        assert tuple(parts[: len(PARTS)]) == PARTS, each[:20]


def test_it_may_say_that_no_private_attributes_are_written() -> None:
    written = [*produced._encoded(), produced._note()]
    assert {kind_of(each.SOPClassUID) for each in written} == set(KINDS)
    assert not [each for one in written for each in one.iterall() if each.tag.is_private]
