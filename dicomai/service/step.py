"""Procedure steps out of the spool: what a modality says of its work, put into the catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomai.dicom.uid import SOPInstanceUID, StudyInstanceUID, validated
from dicomai.errors import InputError
from dicomai.store.steps import StepMessage

_REFERENCES = ("ReferencedImageSequence", "ReferencedNonImageCompositeSOPInstanceSequence")


def read(path: Path, node: str) -> StepMessage:
    """Return what a message says (PS3.4 F.7.2.1).

    Raises
    ------
    InputError
        It can't be read.
    """
    try:
        message = dcmread(path)
        uid = validated(str(message.file_meta.MediaStorageSOPInstanceUID), "SOP Instance UID")
        return StepMessage(
            step=uid,
            node=node,
            status=str(message.get("PerformedProcedureStepStatus") or "").strip(),
            studies=tuple(sorted(set(_studies(message)))),
            objects=tuple(sorted(set(_objects(message)))),
            reason=_reason(message),
        )
    except InputError:
        raise
    except Exception as trouble:
        raise InputError(
            f"This message about a procedure step can't be read: {trouble}", subject=str(path)
        ) from trouble


def _studies(message: Dataset) -> Iterator[StudyInstanceUID]:
    for item in message.get("ScheduledStepAttributesSequence") or ():
        if found := item.get("StudyInstanceUID"):
            yield StudyInstanceUID(validated(str(found), "StudyInstanceUID"))


def _objects(message: Dataset) -> Iterator[SOPInstanceUID]:
    for series in message.get("PerformedSeriesSequence") or ():
        for keyword in _REFERENCES:
            for item in series.get(keyword) or ():
                uid = str(item.get("ReferencedSOPInstanceUID") or "")
                yield SOPInstanceUID(validated(uid, "ReferencedSOPInstanceUID"))


def _reason(message: Dataset) -> str:
    sequence = message.get("PerformedProcedureStepDiscontinuationReasonCodeSequence") or ()
    return "; ".join(str(item.get("CodeMeaning") or "")[:64] for item in sequence)
