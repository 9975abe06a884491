"""Items of the content of a document, written out (PS3.3 C.17.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydicom.dataset import Dataset

from dicomai.dicom.codes import Code
from dicomai.results.job import Job
from dicomai.results.provenance import code_item

OBSERVER_TYPE: Final = Code("121005", "DCM", "Observer Type")
DEVICE: Final = Code("121007", "DCM", "Device")
DEVICE_UID: Final = Code("121012", "DCM", "Device Observer UID")


def item(value_type: str, relationship: str, name: Code) -> Dataset:
    """Return an item without its value."""
    made = Dataset()
    made.RelationshipType = relationship
    made.ValueType = value_type
    made.ConceptNameCodeSequence = [code_item(name)]
    return made


def text_item(name: Code, text: str) -> Dataset:
    """Return an item of words."""
    made = item("TEXT", "CONTAINS", name)
    made.TextValue = text
    return made


def container(name: Code, items: Sequence[Dataset]) -> Dataset:
    """Return an item that holds others."""
    made = item("CONTAINER", "CONTAINS", name)
    made.ContinuityOfContent = "SEPARATE"
    made.ContentSequence = list(items)
    return made


def observed_by(job: Job) -> list[Dataset]:
    """Return that the model's device is the observer (TID 1002)."""
    observer = item("CODE", "HAS OBS CONTEXT", OBSERVER_TYPE)
    observer.ConceptCodeSequence = [code_item(DEVICE)]
    device = item("UIDREF", "HAS OBS CONTEXT", DEVICE_UID)
    device.UID = job.device_uid
    return [observer, device]
