"""The same patient's earlier studies that are here, for models that compare.

Nothing is worse than another patient's images: whoever has no Patient ID has no earlier studies,
and a study counts only where its key and its birth date are those of the one that is analysed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date

from sqlalchemy import Connection

from dicomai.dicom.dates import days_before
from dicomai.dicom.identity import Agreed, Identity, IdentityKey, has_patient_id, judge
from dicomai.routing.image import Series
from dicomai.routing.matching import Earlier, study_day
from dicomai.routing.selection import InputSpec
from dicomai.service.whole import Whole, whole
from dicomai.store import series, studies
from dicomai.store.studies import Study


def earlier_studies(connection: Connection, seen: Whole) -> Earlier:
    """Return what gives a patient's studies before one, the latest first, each as its series."""
    known: dict[str, Whole] = {}

    def of(spec: InputSpec) -> Iterator[Sequence[Series]]:
        for study in _candidates(connection, seen.study, spec.max_age_days):
            uid = study.study_instance_uid
            if uid not in known:
                known[uid] = whole(connection, study)
                seen.rows.update(known[uid].rows)
            yield known[uid].series

    return of


def _candidates(connection: Connection, study: Study, max_age_days: int | None) -> Iterator[Study]:
    key, day = study.patient_key, study_day(study.study_date)
    if key is None or day is None or not has_patient_id(key):
        return
    oldest = days_before(day, max_age_days) if max_age_days is not None else date.min
    for before in studies.before(connection, study, key, oldest):
        theirs = (*_identities(connection, study, key), *_identities(connection, before, key))
        if judge(theirs) == Agreed(key=key):
            yield before


def _identities(connection: Connection, study: Study, key: IdentityKey) -> tuple[Identity, ...]:
    """Return whose the objects of a study are; what a person ruled out does not count."""
    return tuple(
        each.identity
        for each in series.identities(connection, study.study_instance_uid)
        if study.accepted_key is None or each.key == key
    )
