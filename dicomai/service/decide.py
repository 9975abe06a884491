"""Deciding on a study: is it whole, whose is it, which routes want it, what do their models get?

The decisions are pure and stand in `dicomai.routing`; here is the edge that owns the transaction:
the study's lock first, then state, jobs and events together, or none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final, Literal

import structlog
from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant, Microseconds, seconds
from dicomai.dicom.header import Attributes
from dicomai.dicom.identity import Ambiguous, IdentityKey, judge
from dicomai.dicom.uid import SeriesInstanceUID, SOPInstanceUID, StudyInstanceUID
from dicomai.errors import InputError, NotFound, TransientError
from dicomai.routing.completeness import Arrived, Host, NotYet, discontinued, gaps_of, lacking
from dicomai.routing.completeness import decide as decide_whole
from dicomai.routing.exclusion import exclude
from dicomai.routing.image import Series
from dicomai.routing.wanted import may_get, may_want
from dicomai.service.applied import apply_all
from dicomai.service.rules import Rules as Rules
from dicomai.service.whole import Whole, whole
from dicomai.store import (
    associations,
    clocks,
    counts,
    decisions,
    events,
    hosts,
    jobs,
    reissues,
    retrievals,
    series,
    steps,
    studies,
    waiting_routes,
)
from dicomai.store.engine import reading, writing
from dicomai.store.job import REISSUE_OF
from dicomai.store.retrievals import NewRetrieval
from dicomai.store.studies import Study

Outcome = Literal["not yet", "held", "decided", "nothing to do", "defect"]
_AFTER_DEFECT: Final = seconds(600)

log = structlog.get_logger()


def are_due(engine: Engine, patience: Microseconds, now: Instant) -> bool:
    """Tell whether there is a study that `decide_due` has something to do with."""
    with reading(engine) as connection:
        return bool(
            decisions.due(connection, now, limit=1)
            or clocks.ahead(connection, _longest(patience), now)
        )


def decide_due(engine: Engine, rules: Rules, now: Instant) -> dict[StudyInstanceUID, Outcome]:
    """Decide on every study whose moment has come; return what became of each."""
    with reading(engine) as connection:
        ahead = clocks.ahead(connection, _longest(rules.patience), now)
    for uid in ahead:
        with writing(engine) as connection:
            study = studies.lock(connection, uid)
            if study is not None and study.status == "open":
                clocks.set_back(connection, study, now)
    with reading(engine) as connection:
        due = decisions.due(connection, now)
    return {study: _decided(engine, study, rules, now) for study in due}


def _longest(patience: Microseconds) -> Microseconds:
    """Return for how long a decision is put off at most, the quiet time aside."""
    return Microseconds(patience + _AFTER_DEFECT + clocks.AHEAD)


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
            decisions.postpone(connection, uid, because, Instant(now + _AFTER_DEFECT), now)
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
                decisions.hold(connection, uid, hold_sentence(uid, verdict), now)
                return "held"
        return _decide_open(connection, study, rules, now)


def decide_again(engine: Engine, uid: StudyInstanceUID, now: Instant) -> None:
    """Have all routes look at a study again, as if it had just come, whatever it came for.

    What they ask for that was analysed already is not analysed again, unless the results of other
    images or another package stand in its place.

    Raises
    ------
    NotFound
        There is no such study.
    InputError
        It is held, or being deleted.
    """
    with writing(engine) as connection:
        study = studies.lock(connection, uid)
        if study is None:
            raise _no_study(uid)
        if study.status == "held":
            raise InputError(
                f"Study {uid} is held, so no route may look at it. Why, and what helps: dicomai "
                f"study {uid}",
                subject=uid,
            )
        if study.status == "deleting":
            raise InputError(
                f"Study {uid} is being deleted by retention. Send it again, and routes look at it.",
                subject=uid,
            )
        retrievals.welcome(connection, uid)
        decisions.reopen(connection, uid, now)


def accept(
    engine: Engine, uid: StudyInstanceUID, key: IdentityKey, now: Instant
) -> tuple[str, ...]:
    """Release a held study for the series of one patient.

    So is one that a person released for another: a key that was wrong stands only until then.

    Returns
    -------
    tuple
        A sentence for each analysis whose results left as another patient's.

    Raises
    ------
    NotFound
        There is no such study, or none of its objects has that key; the sentence lists the keys.
    InputError
        It is not held, and nobody accepted another key for it.
    """
    with writing(engine) as connection:
        study = studies.lock(connection, uid)
        if study is None:
            raise _no_study(uid)
        changed = study.status in ("open", "decided") and study.accepted_key not in (None, key)
        if study.status != "held" and not changed:
            raise InputError(
                f"Study {uid} is {study.status}, not held: nothing is to be accepted.", subject=uid
            )
        keys = series.keys(connection, uid)
        if key not in keys:
            raise NotFound(
                f"Study {uid} has no objects of {key}; it has: {', '.join(keys) or 'no key'}.",
                subject=uid,
            )
        if changed:  # jobs of the patient before are parked, and stay so
            because = f"A person accepted {study.accepted_key} for this study, and now another key."
            decisions.hold(connection, uid, because, now)
        decisions.release(connection, uid, key, now)
        return tuple(_left_as_anothers(connection, uid, key, now))


def _no_study(uid: StudyInstanceUID) -> NotFound:
    return NotFound(f"There is no study {uid}. See: dicomai status.", subject=uid)


def _left_as_anothers(
    connection: Connection, uid: StudyInstanceUID, key: IdentityKey, now: Instant
) -> Iterator[str]:
    """Tell of results that went out for another patient, and how they are taken back."""
    done = [each for each in jobs.of_study(connection, uid) if each.state == "done"]
    replaced = {each.summary.get(REISSUE_OF) for each in done}
    for each in done:
        gone = each.is_withdrawal or each.withdrawn_by is not None or each.id in replaced
        if each.kind != "analyse" or each.patient_key == key or gone:
            continue
        if nodes := sorted(reissues.had_by(connection, each)):
            sentence = (
                f"{each.title}: its results went to {', '.join(nodes)} as those of "
                f"{each.patient_key}, and the study belongs to {key}. To take them back: dicomai "
                f"withdraw {each.id}"
            )
            jobs.tell(connection, each, "results of another patient", sentence, now)
            yield sentence


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
    listed = series.of_study(connection, uid)
    changed = {each.series_instance_uid for each in listed if each.changed}
    seen = whole(connection, study)
    arrived = Arrived(
        last_at=study.last_object_at,
        quiet_until=study.quiet_until,
        open_at=associations.open_nodes(connection, uid),
        gaps=_gaps([each for each in seen.series if each.series_instance_uid in changed]),
        counted=counts.of_study(connection, uid, wanted_by(rules, seen.series)),
        steps=steps.told(connection, uid),
    )
    known = [
        Host(name=each.name, ingested_to=each.ingested_to, beat_at=each.beat_at)
        for each in hosts.listing(connection)
    ]
    decision = decide_whole(arrived, known, patience=rules.patience, now=now)
    if isinstance(decision, NotYet):
        because = None if decision.ordinary else decision.because
        decisions.postpone(connection, uid, because, decision.again_at, now)
        return "not yet"
    if study.accepted_key is None and _hold_shared(connection, uid, now):
        return "held"
    _fetch_missing(connection, uid, arrived, rules, now)
    for sentence in seen.foreign:
        events.record(connection, uid, "series left out", sentence, {}, now)
    applied = _apply(connection, seen, arrived, rules, now)
    series.mark_decided(connection, uid, [each.series_instance_uid for each in listed], now)
    decisions.set_decided(connection, uid, f"{decision.because} {applied}", now)
    return "decided"


def _hold_shared(connection: Connection, uid: StudyInstanceUID, now: Instant) -> bool:
    """Hold a study and each that has an object of it too; False: none has.

    Ingest does so as the object comes, but two hosts that ingest at once don't see each other's.
    """
    shared = studies.sharing(connection, uid)
    if not shared:
        return False
    for other, sop in sorted(shared.items()):
        for held, elsewhere in ((uid, other), (other, uid)):
            study = studies.lock(connection, held)
            if study is not None and study.status != "held" and study.accepted_key is None:
                sentence = shared_sentence(held, elsewhere, sop, series.keys(connection, held))
                decisions.hold(connection, held, sentence, now)
    return True


def shared_sentence(
    uid: StudyInstanceUID, elsewhere: str, sop: SOPInstanceUID, keys: Collection[IdentityKey]
) -> str:
    """Return why a study is held that has an object of another one, and what a person can do."""
    held = f"Study {uid} is held: object {sop} came under study {elsewhere} too."
    if not keys:
        return f"{held} {NOBODYS}"
    return f"{held} Find out whose it is, then: dicomai study {uid} --accept KEY."


def _apply(
    connection: Connection, seen: Whole, arrived: Arrived, rules: Rules, now: Instant
) -> str:
    """Hold routes against a study, unless nobody wants that, and sum it up."""
    waiting_routes.clear(connection, seen.study.study_instance_uid)
    if discontinued(arrived.steps):
        return f"{arrived.steps[0].node} broke off its procedure, so no route was looked at."
    purpose = retrievals.purpose_of(connection, seen.study.study_instance_uid)
    if purpose:
        return f"It was fetched for {purpose} alone, so no route was looked at."
    return apply_all(connection, seen, rules, now)


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
            node=node,
            study_instance_uid=uid,
            series=frozenset(wanted),
            purpose=retrievals.purpose_of(connection, uid),
            ageing=rules.ageing,
        )
        retrievals.queue(connection, retrieval, now)


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
