"""One broken package hides no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.cli.conftest import Dicomai
from tests.models.conftest import write_package


@pytest.fixture
def lungs(service: Engine, tmp_path: Path) -> Path:
    """The folder of a package that a service has, and nobody trusts yet."""
    del service
    return write_package(tmp_path / "models")


def test_a_package_that_cannot_be_read_hides_no_other(lungs: Path, dicomai: Dicomai) -> None:
    (lungs / "CARD.md").unlink()
    (lungs / "CARD.md").mkdir()
    answer = dicomai("models", "--json")
    assert answer.code == 0, answer.err
    listed = {each["name"]: each for each in answer.json}
    assert "CARD.md can't be read" in listed["lungs"]["error"]
    assert listed["chest-ct-lungs"]["version"] == "1.0.0"
