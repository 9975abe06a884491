"""Looking for patients, studies, series and images, as peers ask; page by page.

The database narrows what it has columns for; what is left is held against every key here, so that
both databases answer alike.

Results are kept back here as they are from delivery: those of a route in shadow, those that another
analysis, a reissue or a withdrawal took the place of, and those of a study that is held or another
patient's by now; and those of which nobody knows that any more, for a rescan found their files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, exists, func, or_, select

from dicomai.dicom.header import AttributeValue
from dicomai.dicom.matching import Key
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import headers, instances, schema
from dicomai.store.instances import Instance
from dicomai.store.job import UNKNOWN

Level = Literal["patient", "study", "series", "image"]
Found = dict[str, AttributeValue]
"""What is known of one match, by keyword."""

_Studies: TypeAlias = Sequence[str] | Select[tuple[str]]

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
        kept_back = _kept_back(connection, (uid,))
        for each in instances.of_study(connection, StudyInstanceUID(uid)):
            if (
                each.job_id not in (UNKNOWN, *kept_back)
                and (not chosen or each.series_instance_uid in chosen)
                and (not named or each.sop_instance_uid in named)
            ):
                yield each


@dataclass(frozen=True, slots=True, kw_only=True)
class _LeftOut:
    """What of a study is kept back, and what of it is shown.

    Attributes
    ----------
    instances, series
        How many objects are kept back, and how many series whole.
    shown_series, modalities
        What is left.
    """

    patient_id: str
    instances: int
    series: int
    shown_series: int
    modalities: tuple[str, ...]


def _kept_back(connection: Connection, studies: _Studies) -> tuple[int, ...]:
    """Return the analyses of studies whose results don't leave."""
    jobs, table, routes = schema.jobs, schema.studies, schema.job_routes
    newer = jobs.alias("newer")
    live = exists().where(routes.c.job_id == jobs.c.id, routes.c.mode == "live")
    found = connection.execute(
        select(jobs.c.id)
        .join(table, table.c.study_instance_uid == jobs.c.study_instance_uid)
        .where(
            jobs.c.study_instance_uid.in_(studies),
            jobs.c.kind == "analyse",
            ~live
            | exists().where(newer.c.supersedes == jobs.c.id)
            | (table.c.status == "held")
            | table.c.patient_key.is_distinct_from(jobs.c.patient_key),
        )
    )
    return tuple(found.scalars())


def _shown(connection: Connection, study: StudyInstanceUID) -> ColumnElement[bool]:
    """Return the condition that an object of a study is not kept back."""
    job = schema.instances.c.job_id
    return job.is_(None) | job.not_in((UNKNOWN, *_kept_back(connection, (study,))))


def _left_out(connection: Connection, studies: _Studies) -> dict[str, _LeftOut]:
    """Return what is kept back of studies; those of which all is shown have no entry."""
    table, series, of = schema.instances, schema.series, schema.study_headers
    kept_back = _kept_back(connection, studies)
    hidden: dict[str, dict[str, int]] = {}
    of_known = (
        table.c.job_id.in_(kept_back[at : at + PAGE]) for at in range(0, len(kept_back), PAGE)
    )
    # By the index of studies, as the sum says: after a rescan a great many are of no known job.
    of_unknown = and_(table.c.study_instance_uid.in_(studies), table.c.job_id + 0 == UNKNOWN)
    for those in (*of_known, of_unknown):
        for row in connection.execute(
            select(table.c.study_instance_uid, table.c.series_instance_uid, func.count().label("n"))
            .where(those, table.c.newest)
            .group_by(table.c.study_instance_uid, table.c.series_instance_uid)
        ):
            some = hidden.setdefault(row.study_instance_uid, {})
            some[row.series_instance_uid] = some.get(row.series_instance_uid, 0) + row.n
    listed: dict[str, list[Row[Any]]] = {}
    uids = list(hidden)
    for at in range(0, len(uids), PAGE):
        for row in connection.execute(
            select(series, of.c.patient_id)
            .join(of, of.c.study_instance_uid == series.c.study_instance_uid)
            .where(series.c.study_instance_uid.in_(uids[at : at + PAGE]))
        ):
            listed.setdefault(row.study_instance_uid, []).append(row)
    left_out = {}
    for uid, rows in listed.items():
        some = hidden[uid]
        shown = [row for row in rows if row.instances > some.get(row.series_instance_uid, 0)]
        left_out[uid] = _LeftOut(
            patient_id=rows[0].patient_id,
            instances=sum(some.values()),
            series=len(rows) - len(shown),
            shown_series=len(shown),
            modalities=tuple(sorted({row.modality for row in shown} - {""})),
        )
    return left_out


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
    left_out = _left_out(connection, [row.study_instance_uid for row in rows])
    shown = [_study(row, left_out.get(row.study_instance_uid)) for row in rows]
    found = list(_matching([each for each in shown if each is not None], keys))
    if "NumberOfStudyRelatedSeries" in wanted and found:
        _count_series(connection, found)
    last = rows[-1].study_instance_uid if len(rows) == PAGE else None
    return Page(found=tuple(found), after=last)


def _study(row: Any, without: _LeftOut | None) -> Found | None:
    """Return a study of a row of study_headers with its count; None: nothing of it is shown."""
    found: Found = {
        **row.attributes,
        "StudyInstanceUID": row.study_instance_uid,
        "ModalitiesInStudy": [each for each in row.modalities.split("\\") if each],
        "NumberOfStudyRelatedInstances": row.instances,
    }
    if without is None:
        return found
    found |= {
        "ModalitiesInStudy": list(without.modalities),
        "NumberOfStudyRelatedInstances": row.instances - without.instances,
        "NumberOfStudyRelatedSeries": without.shown_series,
    }
    return found if without.shown_series else None


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
        number = counts.get(str(each["StudyInstanceUID"]), 0)
        each.setdefault("NumberOfStudyRelatedSeries", number)


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
    ids = [row.patient_id for row in rows]
    theirs = select(table.c.study_instance_uid).where(table.c.patient_id.in_(ids))
    left_out: dict[str, list[_LeftOut]] = {}
    for each in _left_out(connection, theirs).values():
        left_out.setdefault(each.patient_id, []).append(each)
    found = [
        {
            **{name: attributes[uid][name] for name in headers.PATIENT if name in attributes[uid]},
            "NumberOfPatientRelatedStudies": number
            - sum(not each.shown_series for each in left_out.get(patient, ())),
            "NumberOfPatientRelatedInstances": int(total)
            - sum(each.instances for each in left_out.get(patient, ())),
        }
        for patient, uid, number, total in rows
    ]
    found = [each for each in found if each["NumberOfPatientRelatedStudies"]]
    if "NumberOfPatientRelatedSeries" in wanted:
        for one in found:
            patient = str(one.get("PatientID", ""))
            number = connection.execute(
                select(func.count())
                .select_from(schema.series)
                .join(table, table.c.study_instance_uid == schema.series.c.study_instance_uid)
                .where(table.c.patient_id == patient)
            ).scalar_one()
            one["NumberOfPatientRelatedSeries"] = number - sum(
                each.series for each in left_out.get(patient, ())
            )
    last = rows[-1].patient_id if len(rows) == PAGE else None
    return Page(found=tuple(_matching(found, keys)), after=last)


def _series(connection: Connection, study: StudyInstanceUID) -> list[Found]:
    series, table = schema.series, schema.instances
    shown = (
        select(func.min(table.c.id).label("first"), func.count().label("number"))
        .where(table.c.study_instance_uid == study, table.c.newest, _shown(connection, study))
        .group_by(table.c.series_instance_uid)
        .subquery()
    )
    rows = connection.execute(
        select(table.c.attributes, shown.c.number)
        .join(shown, shown.c.first == table.c.id)
        .join(
            series,
            and_(
                series.c.study_instance_uid == table.c.study_instance_uid,
                series.c.series_instance_uid == table.c.series_instance_uid,
            ),
        )
        .order_by(series.c.series_number, series.c.series_instance_uid)
    )
    return [{**row.attributes, "NumberOfSeriesRelatedInstances": row.number} for row in rows]


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
            _shown(connection, study),
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
