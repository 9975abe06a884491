"""What a modality says of its work (MPPS), from the spool into the catalogue: killed, and again."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite

from dicomai.dicom.uid import StudyInstanceUID
from dicomai.net.admission import MPPS
from dicomai.service import step
from dicomai.spool import quarantine, reader
from dicomai.spool.entries import EntryKind, Writer, opened
from dicomai.store import steps
from dicomai.store.engine import reading
from dicomai.store.steps import Step, StepMessage

Hospital = Any  # conftest's: importlib mode has no package to import it from
MakeCT = Callable[..., Any]
IMAGES = 1


class Modality:
    """A CT whose messages and images lie in the spool as the receiver keeps them."""

    def __init__(self, hospital: Hospital, study: str) -> None:
        self.study = study
        self.objects = tuple(f"{study}.1.{number}" for number in range(1, IMAGES + 1))
        self._hospital = hospital
        self._writer: Writer = opened(
            hospital.config.spool,
            calling_ae="CT1",
            called_ae="DICOMAI",
            address="192.0.2.1",
            node="CT1",
            started_at=hospital.clock,
        )

    def say(self, kind: EntryKind, status: str) -> None:
        """Send the message that makes a step or sets it; one that is over lists its images."""
        message = Dataset()
        message.PerformedProcedureStepStatus = status
        if kind == "create":
            scheduled = Dataset()
            scheduled.StudyInstanceUID = self.study
            message.ScheduledStepAttributesSequence = [scheduled]
        else:
            series = Dataset()
            series.ReferencedImageSequence = [_reference(each) for each in self.objects]
            message.PerformedSeriesSequence = [series]
        message.file_meta = Dataset()
        message.file_meta.MediaStorageSOPClassUID = MPPS
        message.file_meta.MediaStorageSOPInstanceUID = f"{self.study}.77"
        message.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        path = self._hospital.folder / "message.dcm"
        dcmwrite(path, message, enforce_file_format=True)
        with self._writer.begin() as arriving:
            arriving.write(path.read_bytes())
            arriving.keep(None, kind)
            kept = arriving.entry.path
        # As the hospital's own objects: received by its clock.
        kept.rename(kept.with_stem(f"{kept.stem[:6]}-{self._hospital.clock:016d}"))

    def send_images(self, make_ct: MakeCT) -> None:
        for number in range(1, IMAGES + 1):
            each = make_ct(study=self.study, series=f"{self.study}.1", number=number)
            self._hospital.add(self._writer, each)

    def release(self) -> None:
        self._writer.end("released", self._hospital.clock)


def _reference(uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPInstanceUID = uid
    return item


def _told(hospital: Hospital, study: str) -> tuple[Step, ...]:
    with reading(hospital.engine) as connection:
        return steps.of_study(connection, StudyInstanceUID(study))


def test_killed_after_any_step_no_message_is_lost_and_none_counts_twice(
    any_hospital: Hospital, make_ct: MakeCT
) -> None:
    killed, number = 0, 0
    while killed == number:
        number += 1
        ct = Modality(any_hospital, f"1.2.{number}")
        ct.say("create", "IN PROGRESS")
        ct.send_images(make_ct)
        ct.say("set", "COMPLETED")
        ct.release()
        killed += any_hospital.ingest_until_killed(number)
        any_hospital.ingest()

        (found,) = _told(any_hospital, ct.study)
        assert (found.status, found.objects) == ("COMPLETED", ct.objects), number
        assert any_hospital.story("procedure step", ct.study) == [
            "CT1 says that a procedure step is IN PROGRESS.",
            "CT1 says that a procedure step is COMPLETED.",
        ], number
        rows = any_hospital.rows(ct.study)
        assert [row.sop_instance_uid for row in rows] == list(ct.objects), number
        assert any_hospital.story("objects duplicate", ct.study) == []
        assert list(any_hospital.config.spool.iterdir()) == [], number
    assert killed > 2 * IMAGES + 8  # each step of each image, and those of messages and release
    assert quarantine.listing(any_hospital.config.quarantine) == ()


def test_a_message_that_kills_twice_is_set_aside_and_takes_nobody_along(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    ct = Modality(hospital, "1.2.3")
    ct.say("create", "IN PROGRESS")
    ct.send_images(make_ct)
    ct.say("set", "COMPLETED")
    ct.release()
    read = step.read

    def poisonous(path: Path, node: str) -> StepMessage:
        if path.suffix == ".set":
            os.kill(os.getpid(), signal.SIGKILL)
        return read(path, node)

    monkeypatch.setattr(step, "read", poisonous)
    killed = 0
    while hospital.ingest_in_a_child() == -signal.SIGKILL:
        killed += 1
    assert killed == reader.MAX_ATTEMPTS
    assert [each.reason for each in quarantine.listing(hospital.config.quarantine)] == [
        "Ingest ended 2 times while it worked on this message. It is kept here; please report it."
    ]
    (found,) = _told(hospital, "1.2.3")
    assert found.status == "IN PROGRESS"
    assert len(hospital.rows()) == IMAGES
    assert list(hospital.config.spool.iterdir()) == []


def test_a_message_that_its_disk_does_not_give_back_holds_up_no_other(
    hospital: Hospital, make_ct: MakeCT, monkeypatch: pytest.MonkeyPatch
) -> None:
    modality = Modality(hospital, "1.2.3")
    modality.say("create", "IN PROGRESS")
    modality.send_images(make_ct)

    def damaged(path: Path, _node: str) -> StepMessage:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(step, "read", damaged)
    done = hospital.ingest()

    assert (done.catalogued, done.set_aside) == (IMAGES, 1)
    (kept,) = quarantine.listing(hospital.config.quarantine)
    assert "can't be read: input/output error" in kept.reason
