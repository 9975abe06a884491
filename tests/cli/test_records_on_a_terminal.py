"""What a node has is read on terminals of any width."""

from __future__ import annotations

import sys

import pytest

from dicomai.cli.terminal import records

UID = "2.25.304112658788773235970644392091013758735"
COLUMNS = ["StudyDate", "AccessionNumber", "NumberOfStudyRelatedInstances", "StudyInstanceUID"]
ROW = ["20240611", "A1", "122", UID]


@pytest.mark.parametrize(("width", "lines"), [(80, 7), (200, 4)])
def test_a_uid_is_in_one_piece_however_narrow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, lines: int
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    records(COLUMNS, [ROW])

    out = capsys.readouterr().out
    assert UID in out
    assert all(column in out for column in COLUMNS)
    assert len(out.splitlines()) == lines
