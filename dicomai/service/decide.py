"""Deciding on a study: is it whole, whose is it, which routes want it, what do their models get?

The decisions are pure and stand in `dicomai.routing`; here is the edge that owns the transaction:
the study's lock first, then state, jobs and events together, or none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, Literal
from zoneinfo import ZoneInfo

import structlog
from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant, Microseconds, as_datetime, seconds
from dicomai.dicom.header import Attributes
from dicomai.dicom.identity import Ambiguous, IdentityKey, judge
from dicomai.dicom.uid import SeriesInstanceUID, SOPInstanceUID, StudyInstanceUID
from dicomai.errors import InputError, NotFound, TransientError
from dicomai.routing.completeness import Arrived, Host, NotYet, discontinued, gaps_of, lacking
from dicomai.routing.completeness import decide as decide_whole
from dicomai.routing.exclusion import Excluded, exclude
from dicomai.routing.fingerprint import fingerprint
from dicomai.routing.image import Image, Series, series_of
from dicomai.routing.matching import Matched, Unmatched, match
from dicomai.routing.route import Route
from dicomai.routing.selection import ModelInputs
from dicomai.routing.wanted import may_get, may_want
from dicomai.store import (
    analyses,
    associations,
    counts,
    events,
    hosts,
    instances,
    retrievals,
    series,
    steps,
    studies,
)
from dicomai.store.engine import reading, writing
from dicomai.store.instances import Instance
from dicomai.store.job import JobId, JobInput, JobRoute, NewAnalysis
from dicomai.store.retrievals import NewRetrieval
from dicomai.store.studies import Study

Outcome = Literal["not yet", "held", "decided", "nothing to do", "defect"]
_AFTER_DEFECT: Final = seconds(600)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What studies are decided by.

    Attributes
    ----------
    models
        What each installed package needs, by name.
    patience, ageing
        See the tables [decide] and [worker] of the settings.
    zone
        Of the modalities: their today is the day that `max_study_age_days` counts from.
    fetch_missing
        The nodes from which what they count and did not send is fetched.
    """

    routes: tuple[Route, ...]
    models: Mapping[str, ModelInputs]
    patience: Microseconds
    ageing: Microseconds
    zone: ZoneInfo
    fetch_missing: frozenset[str] = frozenset()


def decide_due(engine: Engine, rules: Rules, now: Instant) -> dict[StudyInstanceUID, Outcome]:
    """Decide on every study whose moment has come; return what became of each."""
    with reading(engine) as connection:
        due = studies.due(connection, now)
    return {study: _decided(engine, study, rules, now) for study in due}


def _decided(engine: Engine, uid: StudyInstanceUID, rules: Rules, now: Instant) -> Outcome:
    """Decide on one study; a defect that it meets must not keep the others waiting."""
    try:
        return decide_study(engine, uid, rules, now)
    except (TransientError, OSError):
        raise
    except Exception as defect:
        log.exception("defect", study=uid)
        because = (
            f"Study {uid}, decide: a defect of dicomai, {type(defect).__name__}: {defect}. "
            f"It is tried again in 10 minutes; the log has the stack, "
            "please report it."
        )
        with writing(engine) as connection:
            studies.lock(connection, uid)
            studies.postpone(connection, uid, because, Instant(now + _AFTER_DEFECT), now)
        return "defect"


def decide_study(engine: Engine, uid: StudyInstanceUID, rules: Rules, now: Instant) -> Outcome:
    """Decide on one study, in one transaction; what it was and why is an event.

    Parameters
    ----------
    uid
        The study; nothing happens where it is not open, or was decided meanwhile.
    """
    with writing(engine) as connection:
        study = studies.lock(connection, uid)
        if study is None or study.status != "open" or study.decide_at > now:
            return "nothing to do"
        if study.accepted_key is None:
            verdict = judge(each.identity for each in series.identities(connection, uid))
            if isinstance(verdict, Ambiguous):
                studies.hold(connection, uid, hold_sentence(uid, verdict), now)
                return "held"
        return _decide_open(connection, study, rules, now)


def accept(engine: Engine, uid: StudyInstanceUID, key: IdentityKey, now: Instant) -> None:
    """Release a held study for the series of one patient.

    Raises
    ------
    NotFound
        There is no such study, or none of its objects has that key; the sentence lists the keys.
    InputError
        It is not held.
    """
    with writing(engine) as connection:
        study = studies.lock(connection, uid)
        if study is None:
            raise NotFound(f"There is no study {uid}. See: dicomai status.", subject=uid)
        if study.status != "held":
            raise InputError(
                f"Study {uid} is {study.status}, not held: nothing is to be accepted.", subject=uid
            )
        keys = sorted({each.key for each in series.identities(connection, uid) if each.key})
        if key not in keys:
            raise NotFound(
                f"Study {uid} has no objects of {key}; it has: {', '.join(keys) or 'no key'}.",
                subject=uid,
            )
        studies.release(connection, uid, key, now)


NOBODYS: Final = (
    "No object names one patient alone, so none can be accepted. Correct Patient ID where they "
    "come from, and send them as a new study."
)


def hold_sentence(uid: StudyInstanceUID, verdict: Ambiguous) -> str:
    """Return why a study is held, and what a person can do."""
    held = f"Study {uid} is held: {verdict.because}."
    if not verdict.keys:
        return f"{held} {NOBODYS}"
    return (
        f"{held} Keys: {', '.join(verdict.keys)}. Find out whose it is, then: "
        f"dicomai study {uid} --accept KEY."
    )


def _decide_open(connection: Connection, study: Study, rules: Rules, now: Instant) -> Outcome:
    uid = study.study_instance_uid
    rows = instances.of_study(connection, uid)
    listed = series.of_study(connection, uid)
    changed = {each.series_instance_uid for each in listed if each.changed}
    found = series_of(image_of(row) for row in rows)
    theirs, foreign = _of_patient(connection, study, found)
    arrived = Arrived(
        last_at=study.last_object_at,
        quiet_until=study.quiet_until,
        open_at=tuple(
            each.node for each in associations.of_study(connection, uid) if each.ended_at is None
        ),
        gaps=_gaps([each for each in theirs if each.series_instance_uid in changed]),
        counted=counts.of_study(connection, uid, wanted_by(rules, found)),
        steps=steps.told(connection, uid),
    )
    known = [
        Host(name=each.name, ingested_to=each.ingested_to, beat_at=each.beat_at)
        for each in hosts.listing(connection)
    ]
    whole = decide_whole(arrived, known, patience=rules.patience, now=now)
    if isinstance(whole, NotYet):
        because = None if whole.ordinary else whole.because
        studies.postpone(connection, uid, because, whole.again_at, now)
        return "not yet"
    _fetch_missing(connection, uid, arrived, rules, now)
    for sentence in foreign:
        events.record(connection, uid, "series left out", sentence, {}, now)
    if discontinued(arrived.steps):
        applied = f"{arrived.steps[0].node} broke off its procedure, so no route was looked at."
    else:
        applied = _apply(connection, study, theirs, rows, rules, now)
    series.mark_decided(connection, uid, [each.series_instance_uid for each in listed], now)
    studies.set_decided(connection, uid, f"{whole.because} {applied}", now)
    return "decided"


def wanted_by(
    rules: Rules, here: Iterable[Series]
) -> Callable[[SeriesInstanceUID, Attributes, int], bool]:
    """Return what tells whether a model may want a series that a node counts.

    Parameters
    ----------
    rules
        Routes and models.
    here
        What came of the study: it is judged by its own images, the rest by what the node tells.
    """
    known = {each.series_instance_uid: each for each in here}
    routes = [
        (route, rules.models[route.model])
        for route in rules.routes
        if route.mode != "off" and route.model in rules.models
    ]

    def wanted(uid: SeriesInstanceUID, told: Attributes, instances: int) -> bool:
        one = known.get(uid)
        if one is None:
            return any(may_want(route, model, told, instances) for route, model in routes)
        return any(may_get(route, model, one, instances) for route, model in routes)

    return wanted


def _fetch_missing(
    connection: Connection, uid: StudyInstanceUID, arrived: Arrived, rules: Rules, now: Instant
) -> None:
    """Queue the retrieval of what never came; it is decided on again when it has come."""
    missing: dict[str, set[SeriesInstanceUID]] = {}
    for each in lacking(arrived.counted):
        if each.node in rules.fetch_missing:
            missing.setdefault(each.node, set()).add(SeriesInstanceUID(each.series_instance_uid))
    for node, wanted in missing.items():
        retrieval = NewRetrieval(
            node=node, study_instance_uid=uid, series=frozenset(wanted), ageing=rules.ageing
        )
        retrievals.queue(connection, retrieval, now)


def _of_patient(
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
        if keys.get(SeriesInstanceUID(one.series_instance_uid), set()) <= {study.accepted_key}:
            theirs.append(one)
        else:
            foreign.append(
                f"{one.title.capitalize()} left out: it has objects of another patient than "
                f"{study.accepted_key}, whom a person accepted."
            )
    return theirs, foreign


def _gaps(changed: Sequence[Series]) -> tuple[str, ...]:
    sentences = []
    for each in changed:
        left, _ = exclude(each, ())
        missing = gaps_of(left.images) if left is not None else ()
        if missing:
            places = ", ".join(f"{at:g}" for at in missing[:5])
            more = f" and {len(missing) - 5} more places" if len(missing) > 5 else ""
            sentences.append(f"{each.title} has no slice at {places} mm{more}")
    return tuple(sentences)


def _apply(
    connection: Connection,
    study: Study,
    found: Sequence[Series],
    rows: Sequence[Instance],
    rules: Rules,
    now: Instant,
) -> str:
    """Hold each route against the study, queue what they want, and sum it up."""
    uid = study.study_instance_uid
    today = as_datetime(now).astimezone(rules.zone).date()
    matched: list[str] = []
    told: set[Excluded] = set()
    for route in rules.routes:
        outcome = _outcome(route, rules, found, today)
        for each in outcome.excluded:
            if each not in told:
                told.add(each)
                events.record(
                    connection,
                    uid,
                    "objects left out",
                    f"{each.sentence[0].upper()}{each.sentence[1:]}",
                    {"series": each.series_instance_uid, "kind": each.kind, "count": each.count},
                    now,
                )
        if isinstance(outcome, Unmatched):
            sentence = f"Route {route.name} does not match: {outcome.because}."
            events.record(connection, uid, "route unmatched", sentence, {"route": route.name}, now)
            continue
        matched.append(route.name)
        job = _queue(connection, study, route, outcome, rows, rules, now)
        _tell_choice(connection, uid, route, outcome, job, now)
    if not rules.routes:
        return "There is no route, so nothing is to be done."
    if not matched:
        return "No route wants it; its events say why."
    if len(matched) == 1:
        return f"Route {matched[0]} wants it."
    return f"Routes {', '.join(matched)} want it."


def _outcome(
    route: Route, rules: Rules, found: Sequence[Series], today: date
) -> Matched | Unmatched:
    model = rules.models.get(route.model)
    if model is None:
        return Unmatched(because=f"no package {route.model} is installed")
    return match(route, model, found, today=today)


def _queue(
    connection: Connection,
    study: Study,
    route: Route,
    matched: Matched,
    rows: Sequence[Instance],
    rules: Rules,
    now: Instant,
) -> JobId:
    assert route.mode != "off"
    assert study.patient_key is not None
    model = rules.models[route.model]
    by_sop = {row.sop_instance_uid: row for row in rows}
    added = analyses.add_analysis(
        connection,
        NewAnalysis(
            study_instance_uid=study.study_instance_uid,
            patient_key=study.patient_key,
            model=route.model,
            package_sha256=model.package_sha256,
            choice=_choice(route, model, matched),
            fingerprint=fingerprint(model.package_sha256, matched.images, 0),
            inputs=tuple(
                JobInput(
                    input=choice.input,
                    instance_id=by_sop[SOPInstanceUID(image.sop_instance_uid)].id,
                    study_instance_uid=study.study_instance_uid,
                    series_instance_uid=SeriesInstanceUID(image.series_instance_uid),
                    sop_instance_uid=SOPInstanceUID(image.sop_instance_uid),
                )
                for choice in matched.choices
                if choice.chosen is not None
                for image in choice.chosen.images
            ),
            route=JobRoute(route=route.name, mode=route.mode, destinations=route.destinations),
            priority=route.priority,
            urgent=route.urgent,
            ageing=rules.ageing,
        ),
        now,
    )
    return added.job_id


def _choice(route: Route, model: ModelInputs, matched: Matched) -> str:
    """Name what was chosen, without its versions: late images of it supersede the job.

    An image is chosen by itself; and what a route allows besides makes another input of the series.
    """
    parts = []
    for spec, choice in zip(model.inputs, matched.choices, strict=True):
        assert choice.chosen is not None
        chosen = choice.chosen
        uid = chosen.series.series_instance_uid
        alone = f"/{chosen.images[0].sop_instance_uid}" if spec.kind == "image" else ""
        parts.append(f"{spec.name}={uid}{alone}")
    return " ".join([*parts, *(f"+{each}" for each in sorted(route.allow))])


def _tell_choice(
    connection: Connection,
    uid: StudyInstanceUID,
    route: Route,
    matched: Matched,
    job: JobId,
    now: Instant,
) -> None:
    sentence = f"Route {route.name} ({route.mode}) matches: {matched.because}."
    after = [text for choice in matched.choices for text in choice.runners_up]
    rejected = [text for choice in matched.choices for text in choice.rejected]
    events.record(
        connection,
        uid,
        "route matched",
        " ".join([sentence, *(f"{text[0].upper()}{text[1:]}" for text in after)]),
        {
            "route": route.name,
            "mode": route.mode,
            "runners_up": tuple(after),
            "rejected": tuple(rejected),
        },
        now,
        job,
    )


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
