"""Routes whose model can be read again are held against the studies that they waited for."""

from __future__ import annotations

from typing import Final

import structlog
from sqlalchemy import Connection, Engine

from dicomai.dicom.dates import Instant, seconds
from dicomai.errors import TransientError
from dicomai.routing.matching import Unmatched, without_age
from dicomai.routing.route import Route
from dicomai.service.applied import applied, unmatched_sentence
from dicomai.service.rules import Rules
from dicomai.service.whole import whole
from dicomai.store import decisions, events, studies, waiting_routes
from dicomai.store.engine import writing
from dicomai.store.waiting_routes import WaitingRoute

_AFTER_DEFECT: Final = seconds(600)

log = structlog.get_logger()


def take_up(engine: Engine, waiting: WaitingRoute, rules: Rules, now: Instant) -> bool:
    """Hold a route against a study that it waited for; False: it waits on."""
    if waiting.route in rules.blocked:
        return False
    route = next((each for each in rules.routes if each.name == waiting.route), None)
    try:
        with writing(engine) as connection:
            return _taken_up(connection, waiting, route, rules, now)
    except (TransientError, OSError):
        raise
    except Exception as defect:
        # As in a decision: it must not keep the others waiting.
        log.exception("defect", study=waiting.study_instance_uid)
        sentence = (
            f"Route {waiting.route}: a defect of dicomai, {type(defect).__name__}: {defect}. It is "
            "tried again in 10 minutes; the log has the stack, please report it."
        )
        with writing(engine) as connection:
            waiting_routes.postpone(connection, waiting, Instant(now + _AFTER_DEFECT))
            uid, data = waiting.study_instance_uid, {"route": waiting.route}
            events.record(connection, uid, "route waits", sentence, data, now)
        return False


def _taken_up(
    connection: Connection,
    waiting: WaitingRoute,
    route: Route | None,
    rules: Rules,
    now: Instant,
) -> bool:
    study = studies.lock(connection, waiting.study_instance_uid)
    if study is None or study.status != "decided":
        return False
    if not waiting_routes.remove(connection, waiting):
        return False
    if route is None:
        became = f"Route {waiting.route} is not configured any more, so it waits no longer."
        data = {"route": waiting.route}
        uid = study.study_instance_uid
        events.record(connection, uid, "route unmatched", became, data, now)
    else:
        # How old a study may be was asked when it was decided on.
        outcome = applied(connection, whole(connection, study), without_age(route), rules, now)
        became = (
            unmatched_sentence(route, outcome)
            if isinstance(outcome, Unmatched)
            else f"Route {route.name} wants it."
        )
    decisions.amend_decision(connection, study, waiting.because, became)
    return True
