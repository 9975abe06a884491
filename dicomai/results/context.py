"""What an encoder has to know beyond the findings: who we are, when, and what came before."""

from __future__ import annotations

from dataclasses import dataclass

from dicomai.dicom.dates import Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class PredecessorSR:
    """The report of an earlier job that this one replaces (PS3.3 C.17.2)."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultContext:
    """Who encodes, and when.

    Attributes
    ----------
    created_at
        Content Date and Time of the objects. Taken from the job, not from the clock, so that an
        encoding that is repeated gives the same bytes.
    manufacturer, model_name, software_version
        The device that wrote the objects: this service.
    institution_name
        Where it stands; empty where nobody said.
    charset_default
        Specific Character Set of undeclared bytes above 127 (the node's); empty: unknown.
    timezone
        IANA name of the zone of the modalities, where objects don't say their offset.
    predecessors
        The reports that this one replaces.
    route
        The rules that asked for the analysis; empty where a person did.
    """

    created_at: Instant
    manufacturer: str = "dicomai"
    model_name: str = "dicomai"
    software_version: str
    institution_name: str = ""
    charset_default: str = ""
    timezone: str = "UTC"
    predecessors: tuple[PredecessorSR, ...] = ()
    route: str = ""
