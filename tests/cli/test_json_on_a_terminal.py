"""JSON may be looked at, and what peers wrote stands in it."""

from __future__ import annotations

import json
import os

import pytest

from dicomai.cli.terminal import print_json, say

WRITTEN = "\x9b31m\x1b[2J\x7f\u202etfel\u2066\u2028 Müller 山田 \U0001f480"


def test_nothing_in_json_moves_a_cursor_or_turns_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"said": [WRITTEN]})
    out = capsys.readouterr().out
    assert json.loads(out) == {"said": [WRITTEN]}
    assert "Müller 山田 \U0001f480" in out
    assert not any(char in out for char in "\x9b\x1b\x7f\u202e\u2066\u2028")


def test_a_file_s_name_that_is_no_utf_8_can_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"R\xf6ntgen")
    say(f"{name} is no DICOM.")
    print_json({"file": name})
    written, json_written = capsys.readouterr().out.split("\n", 1)
    assert written == "R\\udcf6ntgen is no DICOM."
    assert json_written.encode("ascii")
    assert json.loads(json_written) == {"file": name}
