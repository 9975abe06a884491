"""A study as routes see it: its images, by series, of the patient whose it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from dicomai.dicom.identity import IdentityKey, identity_of
from dicomai.dicom.uid import SeriesInstanceUID
from dicomai.routing.exclusion import Excluded
from dicomai.routing.image import Image, Series, series_of
from dicomai.store import instances, series
from dicomai.store.instances import Instance
from dicomai.store.studies import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A study that routes may look at.

    Attributes
    ----------
    rows
        The newest version of each of its objects, by SOP Instance UID; and so of earlier studies
        that an input comes from.
    series
        Those of the patient.
    foreign
        A sentence for each other one.
    """

    study: Study
    rows: dict[str, Instance]
    series: tuple[Series, ...]
    foreign: tuple[str, ...]
    told: set[Excluded] = field(default_factory=set)


def whole(connection: Connection, study: Study) -> Whole:
    """Return a study as routes see it."""
    rows = instances.of_study(connection, study.study_instance_uid)
    theirs, foreign = of_patient(connection, study, series_of(image_of(row) for row in rows))
    return Whole(
        study=study,
        rows={row.sop_instance_uid: row for row in rows},
        series=tuple(theirs),
        foreign=tuple(foreign),
    )


def of_patient(
    connection: Connection, study: Study, found: Sequence[Series]
) -> tuple[list[Series], list[str]]:
    """Return the series of the patient that a person accepted, and a sentence for each other."""
    if study.accepted_key is None:
        return list(found), []
    keys: dict[SeriesInstanceUID, set[IdentityKey | None]] = {}
    for each in series.identities(connection, study.study_instance_uid):
        keys.setdefault(each.series_instance_uid, set()).add(each.key)
    theirs, foreign = [], []
    for one in found:
        seen = keys.get(SeriesInstanceUID(one.series_instance_uid), set())
        if seen <= {study.accepted_key} or all(
            _only_key(each, seen) == study.accepted_key for each in one.images
        ):
            theirs.append(one)
        else:
            foreign.append(
                f"{one.title.capitalize()} left out: it has objects of another patient than "
                f"{study.accepted_key}, whom a person accepted. If that was wrong: dicomai study "
                f"{study.study_instance_uid} --accept KEY"
            )
    return theirs, foreign


def _only_key(image: Image, keys: Iterable[IdentityKey | None]) -> IdentityKey | None:
    """Return the one of its series' keys that an image can have, None where that isn't certain.

    Keys of versions that others have replaced are among them.
    """
    own = identity_of(image.attributes, issuer_of_node="", placeholders=()).key
    # Behind an @ stands the issuer that its node was configured with.
    fits = [key for key in keys if key and own and (key == own or key.startswith(f"{own}@"))]
    return fits[0] if len(fits) == 1 else None


def image_of(row: Instance) -> Image:
    """Return what rules see of an object."""
    return Image(
        series_instance_uid=row.series_instance_uid,
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        header_digest=row.header_digest,
        pixel_digest=row.pixel_digest,
        origin=row.origin,
        node=row.node,
        attributes=row.attributes,
    )
