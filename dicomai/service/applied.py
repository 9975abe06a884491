"""Routes applied to a study: what each wants of it, queued and told.

The study is locked and whole; whose series count is decided before.
"""

from __future__ import annotations

from datetime import date

from sqlalchemy import Connection

from dicomai.dicom.dates import Instant, as_datetime
from dicomai.routing.fingerprint import fingerprint
from dicomai.routing.matching import Matched, Unmatched, match, ruled_out
from dicomai.routing.route import Route
from dicomai.routing.selection import ModelInputs
from dicomai.service.earlier import earlier_studies
from dicomai.service.rules import Rules
from dicomai.service.whole import Whole
from dicomai.store import analyses, events, jobs, waiting_routes
from dicomai.store.before import became, was_pruned
from dicomai.store.instances import Instance
from dicomai.store.job import AddedJob, JobInput, JobRoute, NewAnalysis
from dicomai.store.waiting_routes import WaitingRoute


def apply_all(connection: Connection, seen: Whole, rules: Rules, now: Instant) -> str:
    """Hold each route against a study, queue what they want, and sum it up."""
    outcomes = {route.name: applied(connection, seen, route, rules, now) for route in rules.routes}
    matched = [name for name, each in outcomes.items() if isinstance(each, AddedJob)]
    waits = [each.because for each in outcomes.values() if isinstance(each, WaitingRoute)]
    if not rules.routes:
        return "There is no route, so nothing is to be done."
    if not matched:
        return " ".join(waits) or "No route wants it; its events say why."
    if len(matched) == 1:
        return " ".join([f"Route {matched[0]} wants it.", *waits])
    return " ".join([f"Routes {', '.join(matched)} want it.", *waits])


def applied(
    connection: Connection, seen: Whole, route: Route, rules: Rules, now: Instant
) -> AddedJob | Unmatched | WaitingRoute:
    """Hold a route against a study, and queue what it wants, or say why it wants nothing.

    Where its model's package can't be read it waits, unless it wants nothing whatever that takes.
    """
    if route.model not in rules.models:
        return _kept_back(connection, seen, route, rules, now)
    outcome = held_against(connection, seen, route, rules, now)
    if isinstance(outcome, Unmatched):
        return outcome
    new = wanted(seen, route, outcome, rules)
    return queued(connection, seen, route, outcome, new, now)


def held_against(
    connection: Connection, seen: Whole, route: Route, rules: Rules, now: Instant
) -> Matched | Unmatched:
    """Return what a route wants of a study, and tell what was left out and why."""
    uid = seen.study.study_instance_uid
    outcome = _outcome(connection, seen, route, rules, now)
    for each in outcome.excluded:
        if each not in seen.told:
            seen.told.add(each)
            events.record(
                connection,
                uid,
                "objects left out",
                f"{each.sentence[0].upper()}{each.sentence[1:]}",
                {"series": each.series_instance_uid, "kind": each.kind, "count": each.count},
                now,
            )
    if isinstance(outcome, Unmatched):
        _tell_unmatched(connection, seen, route, outcome, now)
    return outcome


def _tell_unmatched(
    connection: Connection, seen: Whole, route: Route, outcome: Unmatched, now: Instant
) -> None:
    uid, sentence = seen.study.study_instance_uid, unmatched_sentence(route, outcome)
    events.record(connection, uid, "route unmatched", sentence, {"route": route.name}, now)


def unmatched_sentence(route: Route, outcome: Unmatched) -> str:
    """Say that a route wants nothing of a study, and why."""
    return f"Route {route.name} does not match: {outcome.because}."


def _kept_back(
    connection: Connection, seen: Whole, route: Route, rules: Rules, now: Instant
) -> Unmatched | WaitingRoute:
    """Note that a route waits for its model's package, and tell it."""
    outcome = ruled_out(route, seen.series, today=_today(rules, now))
    if outcome is not None:
        _tell_unmatched(connection, seen, route, outcome, now)
        return outcome
    because = (
        f"Route {route.name} waits for its model, and looks at the study by itself when that can "
        f"be read again: {rules.why_missing(route.model)}"
    )
    waiting = WaitingRoute(
        study_instance_uid=seen.study.study_instance_uid, route=route.name, because=because
    )
    waiting_routes.add(connection, waiting, now)
    data = {"route": route.name, "model": route.model}
    uid = seen.study.study_instance_uid
    events.record(connection, uid, "route waits", because, data, now)
    return waiting


def queued(
    connection: Connection,
    seen: Whole,
    route: Route,
    matched: Matched,
    new: NewAnalysis,
    now: Instant,
) -> AddedJob:
    """Queue what a route wants, and tell what was chosen."""
    added = analyses.add_analysis(connection, new, now)
    _tell_choice(connection, seen, route, matched, added, now)
    return added


def _outcome(
    connection: Connection, seen: Whole, route: Route, rules: Rules, now: Instant
) -> Matched | Unmatched:
    model, today = rules.models[route.model], _today(rules, now)
    earlier = earlier_studies(connection, seen)
    return match(route, model, seen.series, today=today, earlier=earlier)


def _today(rules: Rules, now: Instant) -> date:
    return as_datetime(now).astimezone(rules.zone).date()


def wanted(seen: Whole, route: Route, matched: Matched, rules: Rules) -> NewAnalysis:
    """Return the analysis that a route asks for."""
    assert route.mode != "off"
    assert seen.study.patient_key is not None
    model = rules.models[route.model]
    return NewAnalysis(
        study_instance_uid=seen.study.study_instance_uid,
        patient_key=seen.study.patient_key,
        model=route.model,
        package_sha256=model.package_sha256,
        choice=_choice(route, model, matched),
        fingerprint=fingerprint(model.package_sha256, matched.images, 0),
        inputs=tuple(
            input_of(choice.input, seen.rows[image.sop_instance_uid])
            for choice in matched.choices
            if choice.chosen is not None
            for image in choice.chosen.images
        ),
        route=JobRoute(route=route.name, mode=route.mode, destinations=route.destinations),
        priority=route.priority,
        urgent=route.urgent,
        ageing=rules.ageing,
        waits=_waits(route, matched),
    )


def _waits(route: Route, matched: Matched) -> str:
    """Return why an analysis waits, in one sentence; empty where nothing is lacking."""
    names = " and ".join(each.name for each in matched.lacking)
    return f"{route.inputs_from} is asked for its input {names}." if names else ""


def input_of(name: str, row: Instance) -> JobInput:
    """Return an image as what a job takes for an input."""
    return JobInput(
        input=name,
        instance_id=row.id,
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        sop_instance_uid=row.sop_instance_uid,
    )


def _choice(route: Route, model: ModelInputs, matched: Matched) -> str:
    """Name what was chosen, without its versions: late images of it supersede the job.

    An image is chosen by itself; and what a route allows besides makes another input of the series.
    Further inputs follow from the first: one that comes late supersedes the job, as a late image.
    """
    spec, chosen = model.inputs[0], matched.choices[0].chosen
    assert chosen is not None
    alone = f"/{chosen.images[0].sop_instance_uid}" if spec.kind == "image" else ""
    first = f"{spec.name}={chosen.series.series_instance_uid}{alone}"
    return " ".join([first, *(f"+{each}" for each in sorted(route.allow))])


def _tell_choice(
    connection: Connection,
    seen: Whole,
    route: Route,
    matched: Matched,
    added: AddedJob,
    now: Instant,
) -> None:
    sentence = f"Route {route.name} ({route.mode}) matches: {matched.because}."
    after = [text for choice in matched.choices for text in choice.runners_up]
    rejected = [text for choice in matched.choices for text in choice.rejected]
    known = _known(connection, route, added)
    events.record(
        connection,
        seen.study.study_instance_uid,
        "route matched",
        " ".join([sentence, *(f"{text[0].upper()}{text[1:]}" for text in after), *known]),
        {
            "route": route.name,
            "mode": route.mode,
            "runners_up": tuple(after),
            "rejected": tuple(rejected),
        },
        now,
        added.job_id,
    )


def _known(connection: Connection, route: Route, added: AddedJob) -> tuple[str, ...]:
    """Return what a person should know where the same images were asked for before."""
    if added.outcome in ("queued", "shared"):
        return ()
    job = jobs.get(connection, added.job_id)
    if job is None:
        return (was_pruned(added.job_id, route.model),)
    return (f"{job.title} is of the same images, and {became(job)}",)
