"""A host that is gone for good holds decisions up until an administrator says so."""

from __future__ import annotations

import json
from pathlib import Path

from catalogue_rows import arrive
from sqlalchemy import Engine

from dicomai.dicom.dates import Instant, now, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import associations, decisions, hosts, studies
from dicomai.store.associations import Association
from dicomai.store.engine import reading, writing
from tests.cli.conftest import Dicomai


def heard_of(service: Engine, name: str, seconds_ago: float) -> None:
    at = Instant(now() - seconds(seconds_ago))
    with writing(service) as connection:
        hosts.note_ingested(connection, name, at, at)


def names(service: Engine) -> list[str]:
    with reading(service) as connection:
        return [each.name for each in hosts.listing(connection)]


def test_a_host_that_is_gone_is_forgotten_and_its_name_is_in_status(
    service: Engine, dicomai: Dicomai, tmp_path: Path
) -> None:
    heard_of(service, "old", 3600)
    heard_of(service, "new", 1)
    assert "If it is gone for good: dicomai forget old" in dicomai("status").out
    listed = {each["name"]: each["silent"] for each in dicomai("hosts", "--json").json}
    assert listed == {"new": False, "old": True}
    assert "silent" in dicomai("hosts").out
    answer = dicomai("forget", "old")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == "Host old is forgotten: decisions wait for it no more.\n"
    assert names(service) == ["new"]
    line = json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[-1])
    assert (line["action"], line["subject"]) == ("forget", "old")


def test_no_study_waits_for_an_association_of_a_host_that_is_forgotten(
    service: Engine, dicomai: Dicomai
) -> None:
    heard_of(service, "old", 3600)
    heard_of(service, "new", 1)
    arrive(service, "1.2.3")
    uid = StudyInstanceUID("1.2.3")
    facts = {"node": "CT1", "calling_ae": "CT1", "called_ae": "DICOMAI", "address": "192.0.2.1"}
    with writing(service) as connection:
        for name in ("old", "new"):
            one = Association(id=f"of-{name}", host=name, started_at=now(), **facts)
            associations.note(connection, one, uid)
        assert associations.open_nodes(connection, uid) == ("CT1", "CT1")
        later = Instant(now() + seconds(900))
        decisions.postpone(connection, uid, "An association is open.", later, now())
    dicomai("forget", "old")
    with reading(service) as connection:
        assert associations.open_nodes(connection, uid) == ("CT1",)
        found = studies.get(connection, uid)
        assert found is not None
        assert found.decide_at == found.quiet_until


def test_a_host_before_its_first_pass_has_no_date_of_1970(
    service: Engine, dicomai: Dicomai
) -> None:
    with writing(service) as connection:
        hosts.take_name(connection, "new", "there/1", now())
    (listed,) = dicomai("hosts", "--json").json
    assert listed["ingested_to"] is None
    assert dicomai("status", "--json").json["hosts"][0]["ingested_to"] is None
    assert "nothing yet" in dicomai("hosts").out


def test_a_host_that_lives_is_not_forgotten(service: Engine, dicomai: Dicomai) -> None:
    heard_of(service, "new", 1)
    answer = dicomai("forget", "new")
    assert answer.code == 1
    assert "Stop the service there, wait 2 min" in answer.err
    assert names(service) == ["new"]


def test_a_host_that_is_not_there_is_code_4(service: Engine, dicomai: Dicomai) -> None:
    answer = dicomai("forget", "ct9")
    assert (answer.code, answer.err) == (
        4,
        "dicomai: There is no host 'ct9'. See: dicomai hosts\n",
    )
    assert dicomai("hosts").out == "No host has taken an object yet.\n"
