"""The page for maintainers names tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "development.md"


def named() -> list[tuple[str, str]]:
    return re.findall(r"`([\w/]+\.py)::([\w:]+)`", PAGE.read_text(encoding="utf-8"))


def defined(file: Path) -> set[str]:
    """The tests of a file, those of a class as `Class::test`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
    for group in tree.body:
        if isinstance(group, ast.ClassDef):
            members = (each for each in group.body if isinstance(each, ast.FunctionDef))
            found |= {f"{group.name}::{each.name}" for each in members}
    return found


def test_each_test_that_the_page_names_is_there() -> None:
    gone = [
        f"{path}::{name}"
        for path, name in named()
        if not (TESTS / path).is_file() or name not in defined(TESTS / path)
    ]
    assert not gone


def test_each_promise_and_each_bad_input_has_a_test() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    told = {what: tests.count(".py::") for what, tests in rows if ".py::" in tests}
    assert [what[0] for what in told if re.match(r"\d\.", what)] == list("123456")
    assert len(told) > 30
