"""The documentation says what the code says: every command, every option, every setting."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dicomai.cli.reference import pages
from dicomai.settings import Setting, reference

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("name", sorted(pages()))
def test_the_reference_page_is_what_the_code_prints(name: str) -> None:
    assert (DOCS / "reference" / name).read_text(encoding="utf-8") == pages()[name], (
        "print it anew: python -m dicomai.cli.reference docs/reference"
    )


@pytest.mark.parametrize("setting", reference(), ids=lambda each: f"{each.table}.{each.key}")
def test_every_setting_says_what_it_is(setting: Setting) -> None:
    assert setting.description


def test_every_command_says_what_it_does() -> None:
    one = re.compile(r"^## (dicomai.*)\n\n```\nUsage: .*\n\n(.*)\n", re.MULTILINE)
    helps = one.findall(pages()["cli.md"])
    assert len(helps) > 20
    for command, description in helps:
        assert description.startswith("  "), f"{command} has no description"


def test_links_of_the_documentation_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_commands_that_the_documentation_names_exist() -> None:
    known = set(re.findall(r"^## dicomai ([a-z]+)", pages()["cli.md"], re.MULTILINE))
    code = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
    command = re.compile(r"(?:^|`|/bin/)dicomai ([a-z]+)", re.MULTILINE)
    for page in [*PAGES, DOCS.parent / "config" / "dicomai.toml"]:
        for span in code.findall(page.read_text(encoding="utf-8")):
            for name in command.findall(span):
                assert name in known, f"{page.name}: dicomai {name}"


def test_targets_of_make_that_the_documentation_names_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (DOCS.parent / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for name in re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE):
            assert name in targets, f"{page.name}: make {name}"
