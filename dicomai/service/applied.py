"""Routes applied to a study: what each wants of it, queued and told.

The study is locked and whole; whose series count is decided before.
"""

from __future__ import annotations

from sqlalchemy import Connection

from dicomai.dicom.dates import Instant, as_datetime
from dicomai.routing.fingerprint import fingerprint
from dicomai.routing.matching import Matched, Unmatched, match
from dicomai.routing.route import Route
from dicomai.routing.selection import ModelInputs
from dicomai.service.earlier import earlier_studies
from dicomai.service.rules import Rules
from dicomai.service.whole import Whole
from dicomai.store import analyses, events
from dicomai.store.instances import Instance
from dicomai.store.job import AddedJob, JobInput, JobRoute, NewAnalysis


def apply_all(connection: Connection, seen: Whole, rules: Rules, now: Instant) -> str:
    """Hold each route against a study, queue what they want, and sum it up."""
    matched = [
        route.name
        for route in rules.routes
        if isinstance(applied(connection, seen, route, rules, now), AddedJob)
    ]
    if not rules.routes:
        return "There is no route, so nothing is to be done."
    if not matched:
        return "No route wants it; its events say why."
    if len(matched) == 1:
        return f"Route {matched[0]} wants it."
    return f"Routes {', '.join(matched)} want it."


def applied(
    connection: Connection, seen: Whole, route: Route, rules: Rules, now: Instant
) -> AddedJob | Unmatched:
    """Hold a route against a study, and queue what it wants, or say why it wants nothing."""
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
        sentence = f"Route {route.name} does not match: {outcome.because}."
        events.record(connection, uid, "route unmatched", sentence, {"route": route.name}, now)
    return outcome


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
    model = rules.models.get(route.model)
    if model is None:
        return Unmatched(because=f"no package {route.model} is installed")
    today = as_datetime(now).astimezone(rules.zone).date()
    earlier = earlier_studies(connection, seen)
    return match(route, model, seen.series, today=today, earlier=earlier)


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
    events.record(
        connection,
        seen.study.study_instance_uid,
        "route matched",
        " ".join([sentence, *(f"{text[0].upper()}{text[1:]}" for text in after)]),
        {
            "route": route.name,
            "mode": route.mode,
            "runners_up": tuple(after),
            "rejected": tuple(rejected),
        },
        now,
        added.job_id,
    )
