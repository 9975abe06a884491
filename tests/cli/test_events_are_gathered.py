"""A story has one line for objects that came alike in a row, and not one for each batch."""

from __future__ import annotations

import pytest

from dicomai.cli.jobs import show_events
from dicomai.cli.terminal import moment
from dicomai.dicom.dates import Instant
from dicomai.store.events import Event


def _event(at: int, kind: str, sentence: str) -> Event:
    return Event(
        at=Instant(at * 1_000_000),
        study_instance_uid=None,
        job_id=None,
        kind=kind,
        sentence=sentence,
        data={},
    )


def test_batches_of_one_sender_in_a_row_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    came = "objects new"
    show_events(
        (
            _event(1, came, "35 objects came from CT1 (CT1, 192.0.2.1)."),
            _event(2, came, "1 object came from CT1 (CT1, 192.0.2.1)."),
            _event(3, came, "2 objects came from CT2 (CT2, 192.0.2.2)."),
            _event(4, "held", "Study 1.2.3 is held."),
            _event(5, came, "4 objects came from CT1 (CT1, 192.0.2.1)."),
        )
    )
    _, _, *told = capsys.readouterr().out.rstrip().splitlines()  # below the table's head
    assert len(told) == 4
    assert "36 objects came from CT1" in told[0]
    assert "2 objects came from CT2" in told[1]
    assert "4 objects came from CT1" in told[3]
    assert told[0].startswith(moment(2_000_000))
