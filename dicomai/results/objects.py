"""The kinds of objects that results come in: class, modality, and where their series stands."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from dicomai.dicom.codes import OURS, Code
from dicomai.results.uids import (
    COMPREHENSIVE_3D_SR_STORAGE,
    LABELMAP_STORAGE,
    SEGMENTATION_STORAGE,
    Kind,
)
from dicomai.routing.route import SEG_FORMS, ResultObject

DEFAULT: Final[tuple[ResultObject, ...]] = ("SEG", "SR")
SECONDARY_CAPTURE_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.7"
KEY_OBJECT_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.88.59"
PRESENTATION_STATE_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.11.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectKind:
    """What is the same for all objects of a kind.

    Attributes
    ----------
    sop_class_uid, modality
        As they stand in it.
    words
        What its series is called.
    role
        The concept under which a report refers to it; None where it does in another way.
    """

    sop_class_uid: str
    modality: str
    words: str
    role: Code | None = None


KINDS: Final = MappingProxyType[Kind, ObjectKind](
    {
        "SEG": ObjectKind(sop_class_uid=SEGMENTATION_STORAGE, modality="SEG", words="SEG"),
        "SR": ObjectKind(sop_class_uid=COMPREHENSIVE_3D_SR_STORAGE, modality="SR", words="report"),
        "SC": ObjectKind(
            sop_class_uid=SECONDARY_CAPTURE_STORAGE,
            modality="OT",
            words="pictures",
            role=Code("121200", "DCM", "Illustration of ROI"),
        ),
        "KO": ObjectKind(
            sop_class_uid=KEY_OBJECT_STORAGE,
            modality="KO",
            words="key images",
            role=Code("KEY-IMAGES", OURS, "Selection of key images"),
        ),
        "PR": ObjectKind(
            sop_class_uid=PRESENTATION_STATE_STORAGE,
            modality="PR",
            words="marks",
            role=Code("MARKS", OURS, "Marks to show on the images"),
        ),
        "LABELMAP": ObjectKind(
            sop_class_uid=LABELMAP_STORAGE,
            modality="SEG",
            words="labels",
            role=Code("LABELS", OURS, "Label map of the segments"),
        ),
        "PM": ObjectKind(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.30",
            modality="OT",
            words="map",
            role=Code("PROBABILITIES", OURS, "Map of probabilities"),
        ),
        "RTSTRUCT": ObjectKind(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.481.3",
            modality="RTSTRUCT",
            words="contours",
            role=Code("CONTOURS", OURS, "Contours of the segments"),
        ),
        "PDF": ObjectKind(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.104.1",
            modality="DOC",
            words="page",
            role=Code("PAGE", OURS, "Page that sums up"),
        ),
        "SR:ENHANCED": ObjectKind(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.88.22",
            modality="SR",
            words="numbers",
            role=Code("NUMBERS", OURS, "Report in words and numbers"),
        ),
        "SR:TEXT": ObjectKind(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.88.11",
            modality="SR",
            words="text",
            role=Code("TEXT", OURS, "Report in words"),
        ),
    }
)


def kind_of(sop_class_uid: str) -> Kind:
    """Return the kind of a result by its class."""
    return next(kind for kind, each in KINDS.items() if each.sop_class_uid == sop_class_uid)


def classes_of(objects: Iterable[ResultObject]) -> frozenset[str]:
    """Return the SOP classes of what was asked for; the report is always among them."""
    return frozenset(KINDS[_kind(each)].sop_class_uid for each in (*DEFAULT[1:], *objects))


def referred_to(made: Collection[str]) -> str:
    """Return the class of the Segmentation that the groups of a report refer to, if it was made."""
    return SEGMENTATION_STORAGE if SEGMENTATION_STORAGE in made else LABELMAP_STORAGE


def _kind(wanted: ResultObject) -> Kind:
    if wanted == "SEG:LABELMAP":
        return "LABELMAP"
    if wanted in SEG_FORMS:
        return "SEG"
    if wanted == "NOT-ANALYSED":
        return "SR"
    return next(each for each in KINDS if each == wanted)
