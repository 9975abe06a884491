"""Looking for patients, studies, series and images, as peers ask; page by page.

The database narrows what it has columns for; what is left is held against every key here, so that
both databases answer alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from dicomai.dicom.header import AttributeValue
from dicomai.dicom.matching import Key
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import headers, instances, schema
from dicomai.store.instances import Instance

Level = Literal["patient", "study", "series", "image"]
Found = dict[str, AttributeValue]
"""What is known of one match, by keyword."""

PAGE: Final = 200

COUNTED: Final = frozenset(
    {
        "NumberOfPatientRelatedStudies",
        "NumberOfPatientRelatedSeries",
        "NumberOfPatientRelatedInstances",
        "NumberOfStudyRelatedSeries",
        "NumberOfStudyRelatedInstances",
        "NumberOfSeriesRelatedInstances",
    }
)
_OF_LEVEL: Final[Mapping[Level, frozenset[str]]] = {
    "patient": frozenset(headers.PATIENT),
    "study": frozenset({*headers.PATIENT, *headers.STUDY, "ModalitiesInStudy"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some matches, and where the next page begins; None: there is none."""

    found: tuple[Found, ...]
    after: str | None


def supported(level: Level, keyword: str) -> bool:
    """Tell whether a keyword is matched at a level."""
    return keyword in _OF_LEVEL[level] if level in _OF_LEVEL else keyword not in COUNTED


def page(
    connection: Connection,
    level: Level,
    keys: Collection[Key],
    wanted: Collection[str],
    after: str = "",
) -> Page:
    """Return a page of matches.

    Parameters
    ----------
    level
        What to look for; below the study the keys name the study, and the series, by one UID.
    keys
        What must match; those that the level does not have are passed over.
    wanted
        Keywords that are to be told; counts are made only for these.
    after
        Where the page before ended.
    """
    heeded = [each for each in keys if supported(level, each.keyword)]
    if level == "patient":
        return _patients(connection, heeded, wanted, after)
    if level == "study":
        return _studies(connection, heeded, wanted, after)
    (study,) = next(each.values for each in keys if each.keyword == "StudyInstanceUID")
    if level == "series":
        found = _series(connection, StudyInstanceUID(study))
        return Page(found=tuple(_matching(found, heeded)), after=None)
    (series,) = next(each.values for each in keys if each.keyword == "SeriesInstanceUID")
    return _images(connection, StudyInstanceUID(study), series, heeded, after)


def objects(
    connection: Connection,
    *,
    patients: Sequence[str] = (),
    studies: Sequence[str] = (),
    series: Sequence[str] = (),
    images: Sequence[str] = (),
) -> Iterator[Instance]:
    """Give the newest version of each object that is named, study by study.

    Parameters
    ----------
    patients
        Patient IDs; where there are studies they only confirm them.
    studies
        UIDs; empty: all of the patients, or none where no patient is named.
    series, images
        UIDs; empty: all of them.
    """
    if not patients and not studies:
        return
    table = schema.study_headers
    query = select(table.c.study_instance_uid).order_by(table.c.study_instance_uid)
    if patients:
        query = query.where(table.c.patient_id.in_(tuple(patients)))
    if studies:
        query = query.where(table.c.study_instance_uid.in_(tuple(studies)))
    chosen, named = frozenset(series), frozenset(images)
    for uid in connection.execute(query).scalars().all():
        for each in instances.of_study(connection, StudyInstanceUID(uid)):
            if (not chosen or each.series_instance_uid in chosen) and (
                not named or each.sop_instance_uid in named
            ):
                yield each


def _studies(
    connection: Connection, keys: Sequence[Key], wanted: Collection[str], after: str
) -> Page:
    table = schema.study_headers
    rows = connection.execute(
        select(table, schema.studies.c.instances)
        .join(schema.studies, schema.studies.c.study_instance_uid == table.c.study_instance_uid)
        .where(table.c.study_instance_uid > after, *_narrowed(keys))
        .order_by(table.c.study_instance_uid)
        .limit(PAGE)
    ).all()
    found = list(_matching([_study(row) for row in rows], keys))
    if "NumberOfStudyRelatedSeries" in wanted and found:
        _count_series(connection, found)
    last = rows[-1].study_instance_uid if len(rows) == PAGE else None
    return Page(found=tuple(found), after=last)


def _study(row: Any) -> Found:  # a row of study_headers, with its count
    return {
        **row.attributes,
        "StudyInstanceUID": row.study_instance_uid,
        "ModalitiesInStudy": [each for each in row.modalities.split("\\") if each],
        "NumberOfStudyRelatedInstances": row.instances,
    }


def _count_series(connection: Connection, found: Sequence[Found]) -> None:
    table = schema.series
    counts: dict[str, int] = {
        row.study_instance_uid: row.number
        for row in connection.execute(
            select(table.c.study_instance_uid, func.count().label("number"))
            .where(
                table.c.study_instance_uid.in_([str(each["StudyInstanceUID"]) for each in found])
            )
            .group_by(table.c.study_instance_uid)
        )
    }
    for each in found:
        each["NumberOfStudyRelatedSeries"] = counts.get(str(each["StudyInstanceUID"]), 0)


def _patients(
    connection: Connection, keys: Sequence[Key], wanted: Collection[str], after: str
) -> Page:
    table, studies = schema.study_headers, schema.studies
    rows = connection.execute(
        select(
            table.c.patient_id,
            func.max(table.c.study_instance_uid),
            func.count(),
            func.sum(studies.c.instances),
        )
        .join(studies, studies.c.study_instance_uid == table.c.study_instance_uid)
        .where(table.c.patient_id > after, *_narrowed(keys))
        .group_by(table.c.patient_id)
        .order_by(table.c.patient_id)
        .limit(PAGE)
    ).all()
    attributes: dict[str, Found] = {
        row.study_instance_uid: row.attributes
        for row in connection.execute(
            select(table.c.study_instance_uid, table.c.attributes).where(
                table.c.study_instance_uid.in_([row[1] for row in rows])
            )
        )
    }
    found = [
        {
            **{name: attributes[uid][name] for name in headers.PATIENT if name in attributes[uid]},
            "NumberOfPatientRelatedStudies": number,
            "NumberOfPatientRelatedInstances": int(total),
        }
        for _, uid, number, total in rows
    ]
    if "NumberOfPatientRelatedSeries" in wanted:
        for each in found:
            each["NumberOfPatientRelatedSeries"] = connection.execute(
                select(func.count())
                .select_from(schema.series)
                .join(table, table.c.study_instance_uid == schema.series.c.study_instance_uid)
                .where(table.c.patient_id == each.get("PatientID", ""))
            ).scalar_one()
    last = rows[-1].patient_id if len(rows) == PAGE else None
    return Page(found=tuple(_matching(found, keys)), after=last)


def _series(connection: Connection, study: StudyInstanceUID) -> list[Found]:
    series, table = schema.series, schema.instances
    first = (
        select(func.min(table.c.id))
        .where(table.c.study_instance_uid == study, table.c.newest)
        .group_by(table.c.series_instance_uid)
    )
    rows = connection.execute(
        select(table.c.attributes, series.c.instances)
        .join(
            series,
            and_(
                series.c.study_instance_uid == table.c.study_instance_uid,
                series.c.series_instance_uid == table.c.series_instance_uid,
            ),
        )
        .where(table.c.id.in_(first))
        .order_by(series.c.series_number, series.c.series_instance_uid)
    )
    return [{**row.attributes, "NumberOfSeriesRelatedInstances": row.instances} for row in rows]


def _images(
    connection: Connection, study: StudyInstanceUID, series: str, keys: Sequence[Key], after: str
) -> Page:
    table = schema.instances
    rows = connection.execute(
        select(table.c.sop_instance_uid, table.c.attributes)
        .where(
            table.c.study_instance_uid == study,
            table.c.series_instance_uid == series,
            table.c.newest,
            table.c.sop_instance_uid > after,
        )
        .order_by(table.c.sop_instance_uid)
        .limit(PAGE)
    ).all()
    last = rows[-1].sop_instance_uid if len(rows) == PAGE else None
    return Page(found=tuple(_matching([row.attributes for row in rows], keys)), after=last)


def _matching(found: Sequence[Found], keys: Sequence[Key]) -> Iterator[Found]:
    for each in found:
        if all(one.matches(texts(each.get(one.keyword, ""))) for one in keys):
            yield each


def texts(value: AttributeValue) -> list[str]:
    """Return the values of an attribute as a data set writes them."""
    values = [value] if isinstance(value, str | float | int) else list(value)
    return [
        str(int(each)) if isinstance(each, float) and each.is_integer() else str(each)
        for each in values
    ]


def _narrowed(keys: Sequence[Key]) -> Iterator[ColumnElement[bool]]:
    """Give the conditions that the database has columns for; all that match fulfil them."""
    table = schema.study_headers
    columns = {
        "StudyInstanceUID": table.c.study_instance_uid,
        "PatientID": table.c.patient_id,
        "AccessionNumber": table.c.accession_number,
    }
    for each in keys:
        if each.kind == "universal":
            continue
        if each.keyword in columns:
            yield _same(columns[each.keyword], each)
        elif each.keyword == "PatientName":
            yield or_(
                *(table.c.patient_names.like(f"%{_like(one)}%", escape="!") for one in each.values)
            )
        elif each.keyword == "ModalitiesInStudy" and each.kind == "values":
            yield or_(
                *(table.c.modalities.like(f"%\\{_like(one)}\\%", escape="!") for one in each.values)
            )
        elif each.keyword == "StudyDate" and each.kind == "range":
            first, last = each.values
            yield and_(table.c.study_date >= first, table.c.study_date <= (last or "9"))
        elif each.keyword == "StudyDate":
            yield table.c.study_date.in_(each.values)


def _same(column: ColumnElement[str], wanted: Key) -> ColumnElement[bool]:
    if wanted.kind == "wild":
        return column.like(_like(wanted.values[0]), escape="!")
    return column.in_(wanted.values)


def _like(pattern: str) -> str:
    """Return a pattern of `*` and `?` as LIKE has it, with `!` before what it takes otherwise."""
    return "".join(
        {"*": "%", "?": "_", "%": "!%", "_": "!_", "!": "!!"}.get(each, each) for each in pattern
    )
