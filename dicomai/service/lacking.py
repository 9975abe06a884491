"""Inputs that a model takes and that are not here: a node is asked for them while the job waits.

What comes goes the way of all that comes, and counts by what it says itself: a prior is taken from
the catalogue, of the same patient by the same rules, or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from sqlalchemy import Engine

from dicomai.dicom.dates import Instant, as_datetime, days_before, seconds
from dicomai.dicom.header import Attributes
from dicomai.dicom.identity import has_patient_id, known_birth_date
from dicomai.dicom.uid import SeriesInstanceUID, StudyInstanceUID, validated
from dicomai.errors import ConfigError, DatabaseError, DicomaiError, InputError, TransientError
from dicomai.net import find as finding
from dicomai.net.calling import patience
from dicomai.net.find import Match
from dicomai.net.node import Node
from dicomai.routing.matching import over_history, study_day
from dicomai.routing.route import Route
from dicomai.routing.selection import InputSpec
from dicomai.routing.wanted import may_fit
from dicomai.service.applied import applied
from dicomai.service.count import ANSWER_S, series_at
from dicomai.service.rules import Rules
from dicomai.service.whole import whole
from dicomai.settings import Settings
from dicomai.store import analyses, instances, jobs, lacking, retrievals, studies
from dicomai.store.engine import reading, writing
from dicomai.store.job import Job, JobId, JobRoute
from dicomai.store.retrievals import NewRetrieval
from dicomai.store.states import UNFINISHED
from dicomai.store.studies import Study

AGAIN_S: Final = 30.0
"""How long a node that gave no answer is left in peace."""
_MOST_PRIORS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sought:
    """What was done until now about one input; kept as JSON in the job.

    Attributes
    ----------
    tried
        Studies, or series of the study, that were fetched.
    job
        The retrieval that is under way; 0: none.
    of
        The study that it fetches.
    none
        Why there is nothing to fetch; empty: not known yet.
    """

    tried: tuple[str, ...] = ()
    job: int = 0
    of: str = ""
    none: str = ""

    def json(self) -> dict[str, object]:
        """Return it as the catalogue keeps it."""
        return {"tried": list(self.tried), "job": self.job, "of": self.of, "none": self.none}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """What a node may have for an input."""

    study: StudyInstanceUID
    series: frozenset[SeriesInstanceUID]
    names: tuple[str, ...]
    """What is not offered again."""
    words: str


@dataclass(slots=True, kw_only=True)
class Seeker:
    """Looks for the inputs that jobs wait for.

    Attributes
    ----------
    settings
        Nodes, routes, our AE title, how long is waited.
    engine
        The catalogue.
    clock
        The present.
    rules
        What studies are decided by.
    pulse
        Called while it gets on.
    """

    settings: Settings
    engine: Engine
    clock: Callable[[], Instant]
    rules: Callable[[], Rules]
    pulse: Callable[[], None] = lambda: None
    _trouble: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Until when each node is left in peace, and why."""

    def seek_once(self) -> bool:
        """Do what is to be done for each job that waits; return whether anything was."""
        with reading(self.engine) as connection:
            waiting = lacking.waiting(connection)
        worked = False
        for job in waiting:
            self.pulse()
            worked |= self._seek(job)
        return worked

    def _seek(self, job: Job) -> bool:
        with reading(self.engine) as connection:
            study = studies.get(connection, job.study_instance_uid)
        if study is None or study.status != "decided":
            return False  # more of it comes, or it is held: then it is decided on anew
        over = self.clock() - job.created_at > seconds(self.settings.decide.input_wait_s)
        waited = timedelta(seconds=self.settings.decide.input_wait_s)
        if over and lacking.sought_of(job):
            late = dict.fromkeys(lacking.sought_of(job), f"It did not come within {waited}.")
            return self._go_without(job, late)
        try:
            return self._sought(job, study)
        except DatabaseError:
            raise
        except DicomaiError as error:
            if over:
                late = {"": f"It did not come within {waited}: {error.sentence}"}
                return self._go_without(job, late)
            sentence = f"It is asked for again until {self._until(job)}: {error.sentence}"
            if sentence == job.error_sentence:
                return False
            with writing(self.engine) as connection:
                lacking.note(connection, job, lacking.sought_of(job), sentence, self.clock())
            return False

    def _sought(self, job: Job, study: Study) -> bool:
        with reading(self.engine) as connection:
            asked = jobs.routes_of(connection, job.id)
            inputs = {each.input for each in analyses.inputs(connection, job.id)}
        rules = self.rules()
        routes = [
            (each, wanted)
            for wanted in asked
            for each in rules.routes
            if each.name == wanted.route and each.inputs_from and each.mode != "off"
        ]
        if not routes:
            return self._go_without(job, {"": "No route asks a node for it any more."})
        route, wanted = routes[0]
        if route.model not in rules.models:
            raise ConfigError(rules.why_missing(route.model), subject=route.model)
        specs = [each for each in rules.models[route.model].inputs if each.name not in inputs]
        missing: dict[str, str] = {}
        for spec in specs:
            why = self._input(job, study, route, wanted, spec)
            if why is None:
                return True  # something goes on
            if why and len(specs) > 1 and not _sought_for(job, spec).none:
                return self._note_none(job, spec, why)
            if why:
                missing[spec.name] = why
        if len(missing) == len(specs):
            return self._go_without(job, missing)
        return False

    def _input(
        self, job: Job, study: Study, route: Route, wanted: JobRoute, spec: InputSpec
    ) -> str | None:
        """Do the next thing about an input.

        Returns why there is none; an empty reason: it is waited for; None: something changed.
        """
        sought = _sought_for(job, spec)
        if sought.job:
            state = self._state_of(sought)
            if state == "under way":
                return ""
            return None if self._apply(job, route, wanted, spec, sought) else ""
        if sought.none:
            return sought.none
        node = self.settings.node(route.inputs_from)
        offer = self._offer(node, job, study, spec, sought)
        if offer is None:
            return f"{node.name} has nothing for input {spec.name}{_ONE_MORE[bool(sought.tried)]}."
        self._fetch(job, node, spec, sought, offer)
        return None

    def _offer(
        self, node: Node, job: Job, study: Study, spec: InputSpec, sought: _Sought
    ) -> _Offer | None:
        """Return what a node may have for an input and was not fetched yet."""
        until, sentence = self._trouble.get(node.name, (0.0, ""))
        if time.monotonic() < until:
            raise TransientError(sentence, subject=node.name)
        offers = (
            self._priors(node, job, study, spec)
            if spec.source == "prior"
            else self._partners(node, study, spec)
        )
        try:
            return next((each for each in offers if not set(each.names) <= set(sought.tried)), None)
        except DatabaseError:
            raise
        except DicomaiError as error:
            self._trouble[node.name] = time.monotonic() + AGAIN_S, error.sentence
            raise

    def _note_none(self, job: Job, spec: InputSpec, why: str) -> bool:
        """Note that there is nothing for an input, while another one is looked for."""
        known = {**lacking.sought_of(job), spec.name: _Sought(none=why).json()}
        with writing(self.engine) as connection:
            return lacking.note(connection, job, known, job.error_sentence, self.clock())

    def _state_of(self, sought: _Sought) -> str:
        """Tell whether what is fetched is still on its way."""
        with reading(self.engine) as connection:
            retrieval = jobs.get(connection, JobId(sought.job))
            fetched = studies.get(connection, StudyInstanceUID(sought.of))
        if retrieval is not None and retrieval.state in UNFINISHED:
            return "under way"
        return "under way" if fetched is not None and fetched.status == "open" else "over"

    def _apply(
        self, job: Job, route: Route, wanted: JobRoute, spec: InputSpec, sought: _Sought
    ) -> bool:
        """Look whether what came fits; where it does not, something else is looked for."""
        again = over_history(route, wanted.mode, job.priority)
        with writing(self.engine) as connection:
            now = self.clock()
            study = studies.lock(connection, job.study_instance_uid)
            if study is None or study.status != "decided":
                return False
            applied(connection, whole(connection, study), again, self.rules(), now)
            current = jobs.get(connection, job.id)
            if current is not None and current.waiting_for == "input":
                over = _Sought(tried=sought.tried)
                known = {**lacking.sought_of(job), spec.name: over.json()}
                lacking.note(connection, current, known, current.error_sentence, now)
        return True

    def _fetch(self, job: Job, node: Node, spec: InputSpec, sought: _Sought, offer: _Offer) -> None:
        with writing(self.engine) as connection:
            now = self.clock()
            retrieval = NewRetrieval(
                node=node.name,
                study_instance_uid=offer.study,
                series=offer.series,
                purpose=f"job {job.id}",
                priority=job.priority,
                urgent=job.urgent,
                ageing=self.rules().ageing,
            )
            queued = retrievals.queue(connection, retrieval, now)
            noted = _Sought(tried=(*sought.tried, *offer.names), job=queued.job_id, of=offer.study)
            sentence = (
                f"Job {queued.job_id} fetches {offer.words} from {node.name} for its input "
                f"{spec.name}; it is waited for until {self._until(job)}."
            )
            known = {**lacking.sought_of(job), spec.name: noted.json()}
            lacking.note(connection, job, known, sentence, now)

    def _priors(self, node: Node, job: Job, study: Study, spec: InputSpec) -> Iterator[_Offer]:
        """Give the patient's earlier studies that a node tells of, the latest first."""
        with reading(self.engine) as connection:
            # Not the study's header: that may be of an object that a person ruled out.
            header = instances.inputs_of(connection, job.id)[0][1].attributes
        day = study_day(study.study_date)
        patient = str(header.get("PatientID", "")).strip(" ")
        if day is None or not has_patient_id(study.patient_key) or set(patient) & set("*?\\"):
            return
        first = days_before(day, spec.max_age_days) if spec.max_age_days else None
        keys = {
            "PatientID": patient,
            "StudyDate": f"{f'{first:%Y%m%d}' if first else ''}-{day:%Y%m%d}",
            "IssuerOfPatientID": "",
            "PatientBirthDate": "",
        }
        asked = finding.query("study", keys)
        go_on = patience(node, ANSWER_S, self.pulse)
        our_ae, files = self.settings.receiver.ae_title, self.settings.tls.files
        matches = finding.find(node, our_ae, asked, files, go_on=go_on)
        own = f"{day:%Y%m%d}", str(header.get("StudyTime", ""))
        found = [
            (at, uid)
            for match in matches
            if (at := _moment(match)) is not None
            and (at[0] < own[0] or (at[0] == own[0] and "" < at[1] < own[1]))
            and (first is None or at[0] >= f"{first:%Y%m%d}")
            and _is_same(match, patient, header)
            and (uid := _uid(match)) not in ("", study.study_instance_uid)
        ]
        for (date, _), uid in sorted(found, reverse=True)[:_MOST_PRIORS]:
            told = series_at(self.settings, node, StudyInstanceUID(uid), go_on)
            fits = [each for each in told if may_fit(spec.when, each.attributes, each.objects)]
            if fits:
                yield _Offer(
                    study=StudyInstanceUID(uid),
                    series=frozenset(each.series_instance_uid for each in fits),
                    names=(uid,),
                    words=f"{len(fits)} series of the study of {date}",
                )

    def _partners(self, node: Node, study: Study, spec: InputSpec) -> Iterator[_Offer]:
        """Give the series of the study that a node tells of and that are not here."""
        uid = study.study_instance_uid
        with reading(self.engine) as connection:
            here = {each.series_instance_uid for each in whole(connection, study).series}
        go_on = patience(node, ANSWER_S, self.pulse)
        fits = [
            each.series_instance_uid
            for each in series_at(self.settings, node, uid, go_on)
            if each.series_instance_uid not in here
            and may_fit(spec.when, each.attributes, each.objects)
        ]
        if fits:
            yield _Offer(
                study=uid,
                series=frozenset(fits),
                names=tuple(sorted(fits)),
                words=f"{len(fits)} series of the study",
            )

    def _go_without(self, job: Job, missing: dict[str, str]) -> bool:
        with writing(self.engine) as connection:
            study = studies.lock(connection, job.study_instance_uid)
            if study is None or study.status != "decided":
                return False  # while a node was asked more of it has come, or it is held
            return lacking.go_without(connection, job, missing, self.clock())

    def _until(self, job: Job) -> str:
        until = Instant(job.created_at + seconds(self.settings.decide.input_wait_s))
        return as_datetime(until).strftime("%H:%M:%S UTC")


_ONE_MORE: Final = {False: "", True: " besides what came and does not fit"}


def _sought_for(job: Job, spec: InputSpec) -> _Sought:
    known = lacking.sought_of(job).get(spec.name)
    if not isinstance(known, dict):
        return _Sought()
    return _Sought(
        tried=tuple(known["tried"]), job=known["job"], of=known["of"], none=known["none"]
    )


def _moment(match: Match) -> tuple[str, str] | None:
    day = study_day(match.text("StudyDate"))
    return None if day is None else (f"{day:%Y%m%d}", match.text("StudyTime"))


def _uid(match: Match) -> str:
    try:
        return validated(match.text("StudyInstanceUID"), "StudyInstanceUID")
    except InputError:
        return ""


def _is_same(match: Match, patient: str, header: Attributes) -> bool:
    """Tell whether a node speaks of the same patient; what it does not say, the objects will."""
    issuers = match.text("IssuerOfPatientID"), str(header.get("IssuerOfPatientID", ""))
    born = match.text("PatientBirthDate"), str(header.get("PatientBirthDate", ""))
    return (
        match.text("PatientID").strip(" ") == patient
        and len({each.strip(" ") for each in issuers} - {""}) <= 1
        and len({known_birth_date(each) for each in born} - {""}) <= 1
    )
