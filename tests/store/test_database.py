"""How the databases are opened, and that each hot query has its index."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from catalogue_rows import AGEING, NOW, PATIENT, arrive
from sqlalchemy import Connection, Engine, event, insert

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import ConfigError, DatabaseError
from dicomai.store import (
    backfills,
    claims,
    clocks,
    decisions,
    hosts,
    jobs,
    lacking,
    moves,
    nodes,
    postgresql,
    promises,
    retention,
    schema,
    studies,
)
from dicomai.store.backfills import Backfill
from dicomai.store.engine import Unstorable, open_engine, reading, unwritable, writing
from dicomai.store.job import blank
from dicomai.store.leases import LeaseObserver
from dicomai.store.migrate import upgrade
from dicomai.store.studies import Study

ROWS = 3000


def test_a_commit_is_on_disk_when_it_returns(engine: Engine) -> None:
    with writing(engine) as connection:
        if engine.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        else:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


@pytest.mark.parametrize(
    ("setting", "theirs", "shown", "ours"),
    [
        ("synchronous_commit", "off", "synchronous_commit", "on"),
        (
            "default_transaction_isolation",
            "serializable",
            "transaction_isolation",
            "read committed",
        ),
    ],
)
def test_what_we_rely_on_holds_whatever_the_server_says(
    postgresql_engine: Engine, setting: str, theirs: str, shown: str, ours: str
) -> None:
    engine, other = postgresql_engine, open_engine(str(postgresql_engine.url))
    with writing(engine) as connection:
        connection.exec_driver_sql(f"ALTER DATABASE store SET {setting} = '{theirs}'")
    try:
        with reading(other) as connection:
            assert connection.exec_driver_sql(f"SHOW {shown}").scalar() == ours
    finally:
        other.dispose()
        with writing(engine) as connection:
            connection.exec_driver_sql(f"ALTER DATABASE store RESET {setting}")


def test_nothing_is_prepared_at_the_server(postgresql_engine: Engine) -> None:
    """Behind a pooler another client's statement would have the same name there."""
    engine = open_engine(str(postgresql_engine.url))
    with reading(engine) as connection:
        for _ in range(20):
            studies.listing(connection, 1)
        found = connection.exec_driver_sql("SELECT statement FROM pg_prepared_statements")
        assert found.scalars().all() == []
    engine.dispose()


def test_a_primary_that_is_none_any_more_is_left(postgresql_engine: Engine) -> None:
    engine = open_engine(str(postgresql_engine.url))
    with engine.begin() as connection:  # what it was connected to is fenced at a failover
        connection.exec_driver_sql("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    delete = schema.pauses.delete()
    with (
        pytest.raises(DatabaseError, match=r"can only be read.*primary"),
        writing(engine) as fenced,
    ):
        fenced.execute(delete)
    with writing(engine) as connection:  # what database.url leads to now
        connection.execute(delete)
    engine.dispose()


def with_options(engine: Engine, options: str) -> Engine:
    """Return an engine of the same database for whose connections something is set."""
    url = engine.url.update_query_dict({"options": f"-c {options}"})
    return open_engine(url.render_as_string(hide_password=False))


def test_a_standby_is_told_from_a_database_that_takes_something(engine: Engine) -> None:
    assert unwritable(engine) == ""
    if engine.dialect.name == "postgresql":
        standby = with_options(engine, "default_transaction_read_only=on")
        assert "can only be read" in unwritable(standby)
        standby.dispose()


def test_a_standby_is_told_of_to_a_role_that_may_make_no_temporary_tables(
    postgresql_engine: Engine,
) -> None:
    administrator = postgresql_engine.execution_options(isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.exec_driver_sql("CREATE ROLE modest LOGIN")
        connection.exec_driver_sql("GRANT SELECT, DELETE ON alembic_version TO modest")
        connection.exec_driver_sql("REVOKE TEMPORARY ON DATABASE store FROM PUBLIC")
    url = postgresql_engine.url.set(username="modest").render_as_string(hide_password=False)
    modest = open_engine(url)
    try:
        assert unwritable(modest) == ""
        standby = with_options(modest, "default_transaction_read_only=on")
        assert "can only be read" in unwritable(standby)
        standby.dispose()
    finally:
        modest.dispose()
        with administrator.connect() as connection:
            connection.exec_driver_sql("GRANT TEMPORARY ON DATABASE store TO PUBLIC")


def test_a_server_that_cuts_statements_short_is_a_sentence(postgresql_engine: Engine) -> None:
    engine = with_options(postgresql_engine, "statement_timeout=20")
    said = r"due to statement timeout\. Its administrator can give .* more time"
    with pytest.raises(DatabaseError, match=said), writing(engine) as connection:
        connection.exec_driver_sql("SELECT pg_sleep(60)")
    engine.dispose()


def test_a_text_that_no_index_takes_is_a_sentence(postgresql_engine: Engine) -> None:
    text = secrets.token_hex(5000)
    with pytest.raises(Unstorable, match="can't hold a value"), writing(postgresql_engine) as some:
        hosts.note_ingested(some, text, NOW, NOW)


def test_a_server_without_transaction_numbers_is_no_value_s_fault() -> None:
    """What was received then would be set aside, one object after the other."""

    def error(source: bytes) -> psycopg.Error:
        field = psycopg.pq.DiagnosticField
        return psycopg.errors.ProgramLimitExceeded(
            "No.", info={field.SQLSTATE: b"54000", field.SOURCE_FILE: source}
        )

    assert postgresql.too_long(error(b"indextuple.c"))
    assert not postgresql.too_long(error(b"varsup.c"))  # as PostgreSQL 15 says it


def test_a_database_that_can_t_hold_every_name_is_refused(postgresql_engine: Engine) -> None:
    with postgresql_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for encoding in ("LATIN1", "SQL_ASCII"):
            connection.exec_driver_sql(
                f"CREATE DATABASE in_{encoding} TEMPLATE template0 ENCODING '{encoding}' "
                "LC_COLLATE 'C' LC_CTYPE 'C'"
            )
    for encoding in ("latin1", "sql_ascii"):
        url = postgresql_engine.url.set(database=f"in_{encoding}")
        engine = open_engine(url.render_as_string(hide_password=False))
        said = f"encoding {encoding.upper()}.*createdb -E UTF8"
        with pytest.raises(ConfigError, match=said):
            upgrade(engine)
        engine.dispose()


def test_a_database_in_which_no_tables_may_be_made_is_a_sentence(postgresql_engine: Engine) -> None:
    with postgresql_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("CREATE DATABASE of_another")
        connection.exec_driver_sql("CREATE ROLE maker LOGIN")
    url = postgresql_engine.url.set(database="of_another", username="maker")
    engine = open_engine(url.render_as_string(hide_password=False))
    said = r"permission denied for schema public\. .* so must the database that they are made in"
    with pytest.raises(DatabaseError, match=said):
        upgrade(engine)
    engine.dispose()


def test_each_server_of_a_database_is_named() -> None:
    hosts = "host=127.0.0.1:1&host=localhost:1&target_session_attrs=read-write"
    engine = open_engine(f"postgresql://nobody@/nothing?{hosts}&connect_timeout=2")
    said = r"nothing on 127\.0\.0\.1:1 or localhost:1 can't be used"
    with pytest.raises(DatabaseError, match=said) as away, reading(engine):
        pass
    assert "Multiple connection attempts failed" in away.value.sentence
    engine.dispose()


def test_each_address_of_one_server_is_not_told_of(free_port: int) -> None:
    """A name may have two, and the sentence would say the same thrice."""
    twice = f"host=localhost:{free_port}&host=localhost:{free_port}"
    engine = open_engine(f"postgresql://nobody@/nothing?{twice}&connect_timeout=2")
    with pytest.raises(DatabaseError, match="refused") as away, reading(engine):
        pass
    assert away.value.sentence.count("refused") == 1
    engine.dispose()


@pytest.mark.parametrize("value", [2**63, 10**300])
def test_a_number_that_no_column_takes_is_a_sentence(engine: Engine, value: int) -> None:
    with pytest.raises(Unstorable, match="can't hold a value"), writing(engine) as connection:
        hosts.note_ingested(connection, "here", Instant(value), NOW)


def test_half_a_character_is_a_sentence(engine: Engine) -> None:
    with pytest.raises(Unstorable, match="can't hold a value"), writing(engine) as connection:
        hosts.note_ingested(connection, "\ud800", NOW, NOW)


def test_an_exception_rolls_back(engine: Engine) -> None:
    class Trouble(Exception):
        pass

    def half(connection: Connection) -> None:
        decisions.hold(connection, StudyInstanceUID("1.2.3"), "Why.", NOW)
        raise Trouble

    arrive(engine)
    with pytest.raises(Trouble), writing(engine) as connection:
        half(connection)
    with reading(engine) as connection:
        study = studies.get(connection, StudyInstanceUID("1.2.3"))
    assert study is not None
    assert study.status == "open"


def test_an_error_of_the_database_names_no_patient(engine: Engine) -> None:
    """Its text stands in the log with the stack."""
    statement = sqlalchemy.text("SELECT missing FROM studies WHERE patient_key = :key")
    with pytest.raises(sqlalchemy.exc.SQLAlchemyError) as caught, engine.begin() as connection:
        connection.execute(statement, {"key": "Doe^Jane"})
    assert "patient_key" in str(caught.value)
    assert "Doe" not in str(caught.value)


def test_a_locked_sqlite_is_a_sentence_and_a_later_try_works(tmp_path: Path) -> None:
    file = tmp_path / "dicomai.db"
    file.touch()
    engine = open_engine(f"sqlite:///{file}")
    event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA busy_timeout = 10"))
    with writing(engine) as connection:
        schema.metadata.create_all(connection)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseError, match="locked"), writing(engine):
        pass
    with reading(engine) as connection:  # readers go on
        assert studies.listing(connection, 1) == ()
    other.execute("ROLLBACK")
    other.close()
    with writing(engine):
        pass
    engine.dispose()


def test_a_database_that_is_away_is_a_sentence() -> None:
    engine = open_engine("postgresql://nobody@127.0.0.1:1/nothing?connect_timeout=2")
    with pytest.raises(DatabaseError, match=r"nothing on 127\.0\.0\.1") as away, reading(engine):
        pass
    assert (away.value.kind, away.value.exit_code) == ("transient", 5)
    engine.dispose()


def test_no_use_makes_a_database_but_an_upgrade(tmp_path: Path) -> None:
    file = tmp_path / "dä #1" / "dicomai.db"
    engine = open_engine(f"sqlite:///{file}")
    for use in (reading, writing):
        with pytest.raises(DatabaseError, match=r"does not exist.*dicomai init"), use(engine):
            pass
    file.parent.mkdir()
    for use in (reading, writing):
        with pytest.raises(DatabaseError, match=r"does not exist.*dicomai db upgrade"), use(engine):
            pass
    assert list(file.parent.iterdir()) == []
    upgrade(engine)
    assert file.is_file()
    engine.dispose()


def test_only_its_user_and_group_read_a_new_database(tmp_path: Path) -> None:
    file = tmp_path / "dicomai.db"
    engine = open_engine(f"sqlite:///{file}")
    before = os.umask(0o022)
    try:
        upgrade(engine)
        with writing(engine) as connection:
            connection.execute(schema.pauses.delete())
        for each in (file, tmp_path / "dicomai.db-wal", tmp_path / "dicomai.db-shm"):
            assert each.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)
        engine.dispose()


def test_a_database_of_another_user_is_a_sentence(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'dicomai.db'}")
    upgrade(engine)
    # SQLite's own words for it; a test that runs as root may write whatever the mode says.
    event.listen(engine, "begin", lambda c: c.exec_driver_sql("PRAGMA query_only = ON"))
    with pytest.raises(DatabaseError, match="service's user"), writing(engine) as connection:
        connection.execute(schema.pauses.delete())
    engine.dispose()


def test_tables_of_another_role_are_a_sentence(postgresql_engine: Engine) -> None:
    with postgresql_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS stranger")
        connection.exec_driver_sql("CREATE ROLE stranger LOGIN")
    url = postgresql_engine.url.set(username="stranger")
    engine = open_engine(url.render_as_string(hide_password=False))
    said = r"permission denied for table pauses\. Its tables must belong to that role"
    with pytest.raises(DatabaseError, match=said), writing(engine) as connection:
        connection.execute(schema.pauses.delete())
    with pytest.raises(DatabaseError, match="must belong to that role"):
        upgrade(engine)
    engine.dispose()


def test_what_is_no_sqlite_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "dicomai.db").write_text("This is no database. " * 100)
    engine = open_engine(f"sqlite:///{tmp_path / 'dicomai.db'}")
    with (
        pytest.raises(DatabaseError, match=r"is damaged: file is not a database\..*copy that was"),
        writing(engine),
    ):
        pass
    engine.dispose()


@pytest.mark.parametrize("url", ["mysql://host/name", "no url"])
def test_another_kind_of_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"database\.url"):
        open_engine(url)


def fill(engine: Engine) -> None:
    """Fill the tables as after some weeks: much is done, little is to do."""
    with writing(engine) as connection:
        connection.execute(
            insert(schema.studies),
            [
                {
                    "study_instance_uid": f"1.2.{number}",
                    "status": "open" if number % 100 == 0 else "decided",
                    "patient_key": f"P{number}",
                    "accession_number": f"A{number}",
                    "study_date": "20260301",
                    "nodes": ["CT1"],
                    "instances": 1,
                    "first_object_at": NOW + number,
                    "last_object_at": NOW + number,
                    "quiet_until": NOW + number,
                    "full_quiet": False,
                    "decide_at": NOW + number,
                    "decision": "",
                }
                for number in range(ROWS)
            ],
        )
        connection.execute(insert(schema.jobs), [a_job(number) for number in range(ROWS)])
        connection.execute(insert(schema.promises), [a_promise(number) for number in range(3000)])
        connection.exec_driver_sql("ANALYZE")


def a_job(number: int) -> dict[str, object]:
    state = {0: "queued", 1: "waiting", 2: "running"}.get(number % 50, "done")
    row = blank(uuid.uuid4(), StudyInstanceUID(f"1.2.{number}"), PATIENT, NOW)
    return {
        **row,
        "state": state,
        "waiting_for": "back-off" if state == "waiting" else None,
        "due_at": NOW + number if state == "waiting" else None,
        "finished_at": NOW + number if state == "done" else None,
        "kind": "analyse",
        "model": "lungs",
        "package_sha256": "",
        "choice": "ct",
        "fingerprint": f"f{number}",
        "generation": 0,
        "node": "",
        "priority": 0,
        "urgency": 1,
        "ageing": AGEING,
        "rank": NOW + number,
    }


def a_promise(number: int) -> dict[str, object]:
    over = number % 100 != 0
    return {
        "node": "CT1",
        "transaction_uid": f"1.2.{number}",
        "state": "reported" if over else "judged",
        "objects": [["1.2", f"1.2.{number}.1", 0]],
        "received_at": NOW,
        "due_at": None if over else NOW + number,
        "claim": 1,
        "attempts": 0,
        "error_sentence": "",
        "finished_at": NOW if over else None,
    }


QUERIES = {
    "claim": lambda c: claims.claim(c, "w", ("analyse",), ("lungs",), NOW),
    "claim a delivery": lambda c: claims.claim(c, "w", ("deliver",), (), NOW),
    "promote": lambda c: jobs.promote_due(c, Instant(NOW + 100)),
    "due": lambda c: decisions.due(c, Instant(NOW + 100)),
    "ahead": lambda c: clocks.ahead(c, seconds(900), NOW),
    "leases": lambda c: LeaseObserver(60.0).observe(c, 0.0),
    "jobs of a study": lambda c: jobs.of_study(c, StudyInstanceUID("1.2.7")),
    "arriving": lambda c: studies.arriving(c, 100),
    "listing": lambda c: studies.listing(c, 30),
    "without results": lambda c: studies.listing(c, 30, since=NOW, without_results=True),
    "sharing": lambda c: studies.sharing(c, StudyInstanceUID("1.2.7")),
    "accession": lambda c: studies.find_by_accession(c, "A7"),
    "marked studies": retention.going,
    "promises": lambda c: promises.is_due(c, NOW),
    "lacking an input": lacking.waiting,
    "unfinished": lambda c: moves.unfinished(c, StudyInstanceUID("1.2.7")),
    "history": lambda c: backfills.arriving(c, BACKFILL, 10),
    "before a study": lambda c: studies.before(c, STUDY, IdentityKey("P9"), date(2020, 1, 1)),
}
BACKFILL = Backfill(
    id=1,
    node="PACS1",
    route="lungs",
    mode="shadow",
    first_day=date(2026, 1, 1),
    last_day=date(2026, 1, 2),
    studies_per_hour=60,
    state="running",
    next_day=None,
    next_at=NOW,
    trouble="",
    created_at=NOW,
    finished_at=None,
)
STUDY = Study(
    study_instance_uid=StudyInstanceUID("1.2.7"),
    status="decided",
    patient_key=IdentityKey("P9"),
    accepted_key=None,
    hold_reason=None,
    accession_number="A7",
    study_date="20260301",
    nodes=("CT1",),
    instances=1,
    first_object_at=NOW,
    last_object_at=NOW,
    quiet_until=NOW,
    full_quiet=False,
    decide_at=NOW,
    decided_at=None,
    decision="",
)
WHOLE_TABLE = re.compile(
    r"\bSCAN (jobs|studies|instances|promises)(?! USING)|Seq Scan on (jobs|studies|promises)"
)


def test_pruning_reads_no_whole_table_for_each_job(sqlite_engine: Engine) -> None:
    plans = []

    def keep(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if statement.startswith("DELETE FROM jobs"):
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(str(row[-1]) for row in rows)

    with writing(sqlite_engine) as connection:
        event.listen(sqlite_engine, "before_cursor_execute", keep)
        try:
            retention.prune_jobs(connection, NOW)
        finally:
            event.remove(sqlite_engine, "before_cursor_execute", keep)
    looked_up = [plan for plan in plans if "other" in plan]
    assert len(looked_up) == 2
    assert all(plan.startswith("SEARCH") for plan in looked_up), plans


def test_each_hot_query_uses_an_index(engine: Engine) -> None:
    fill(engine)
    plans: dict[str, str] = {}
    explained: list[tuple[str, object]] = []

    def keep(_c: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        explained.append((statement, parameters))

    for name, run in QUERIES.items():
        with writing(engine) as connection:
            explained.clear()
            event.listen(engine, "before_cursor_execute", keep)
            try:
                run(connection)
            finally:
                event.remove(engine, "before_cursor_execute", keep)
            how = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
            rows = [
                row
                for statement, parameters in explained
                for row in connection.exec_driver_sql(f"{how} {statement}", parameters).all()  # type: ignore[arg-type]  # as the driver had them
            ]
            plans[name] = "\n".join(str(row[-1]) for row in rows)
    for name, plan in plans.items():
        assert not WHOLE_TABLE.search(plan), f"{name}\n{plan}"
    assert "ix_jobs_queued" in plans["claim"]
    assert "ix_jobs_waiting" in plans["promote"]
    assert "ix_studies_to_decide" in plans["due"]
    assert "ix_studies_to_decide" in plans["arriving"]
    assert "ix_jobs_running" in plans["leases"]
    if engine.dialect.name == "sqlite":  # PostgreSQL joins, by what it knows of the tables
        assert "ix_instances_produced" in plans["without results"]


def read_by(engine: Engine, do: Callable[[Connection], object]) -> int:
    """Return what something that finds nothing reads: the steps of SQLite."""
    steps = itertools.count()
    with engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        raw.set_progress_handler(lambda: next(steps) < 0, 1)
        try:
            assert not do(connection)
        finally:
            raw.set_progress_handler(None, 0)
    return next(steps)


def a_delivery(number: int, **changed: object) -> dict[str, object]:
    delivery = {"kind": "deliver", "model": "", "node": "PACS1", "fingerprint": None}
    return {**a_job(number), **delivery, "result_of": number, **changed}


NOT_DUE: dict[str, tuple[Callable[[int], dict[str, object]], Callable[[Connection], object]]] = {
    "promote": (
        lambda n: a_delivery(50 * n + 1, waiting_for="breaker", due_at=None),
        lambda c: jobs.promote_due(c, NOW),
    ),
    "lacking an input": (
        lambda n: a_delivery(50 * n + 1, waiting_for="breaker", due_at=None),
        lacking.waiting,
    ),
    "probe": (lambda n: a_delivery(50 * n + 3), lambda c: nodes.probe(c, NOW)),
}


@pytest.mark.parametrize("duty", NOT_DUE)
@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # PostgreSQL reads small tables whole
def test_what_is_not_due_or_done_costs_each_look_nothing(engine: Engine, duty: str) -> None:
    a_row, look = NOT_DUE[duty]
    state = {"probe": "half-open"}.get(duty, "open")
    with writing(engine) as connection:
        connection.execute(
            insert(schema.nodes).values(
                name="PACS1",
                breaker=state,
                retry_at=NOW + 1 if state == "open" else None,
                failures=3,
                openings=1,
                last_error="Away.",
            )
        )
    read = []
    for few_or_many in (range(20), range(20, 1000)):
        with writing(engine) as connection:
            connection.execute(insert(schema.jobs), [a_row(number) for number in few_or_many])
        read.append(read_by(engine, look))
    assert read[1] < 2 * read[0] + 100, read


@pytest.fixture
def proxy(postgresql_engine: Engine) -> Iterator[Proxy]:
    """What stands before PostgreSQL, and passes on what is said until it is told not to."""
    sockets = Path(str(postgresql_engine.url.query["host"])) / ".s.PGSQL.5432"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = Proxy(listening=listening, sockets=sockets)
        threading.Thread(target=made.accept, daemon=True).start()
        yield made
        made.open_again.set()


@dataclass(kw_only=True)
class Proxy:
    """Passes bytes on, both ways; `silent`, it takes them and keeps them."""

    listening: socket.socket
    sockets: Path
    silent: threading.Event = field(default_factory=threading.Event)
    open_again: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        port: int = self.listening.getsockname()[1]
        return port

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listening.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self.sockets))
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self.pass_on, args=(one, other), daemon=True).start()

    def pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError), other:
            while said := one.recv(65536):
                if self.silent.is_set():
                    self.open_again.wait()
                other.sendall(said)


def test_a_database_that_accepts_and_says_nothing_is_waited_for_no_longer_than_this(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "ANSWER_S", 1)
    url = f"postgresql://postgres@127.0.0.1:{proxy.port}/store?connect_timeout=2"
    engine = open_engine(url)
    try:
        for _ in range(2):
            with reading(engine) as connection:
                assert connection.exec_driver_sql("SELECT 1").scalar() == 1
        proxy.silent.set()
        began = time.monotonic()
        with pytest.raises(DatabaseError, match="can't be used"), writing(engine):
            pass
        with pytest.raises(DatabaseError, match="can't be used"), reading(engine):
            pass
        assert time.monotonic() - began < 10
    finally:
        engine.dispose()


def test_a_long_statement_is_not_cut(
    postgresql_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "ANSWER_S", 1)
    engine = open_engine(str(postgresql_engine.url))
    try:
        for _ in range(2):
            with writing(engine) as connection:
                connection.exec_driver_sql("SELECT pg_sleep(1.2)")
    finally:
        engine.dispose()


def test_a_url_may_say_how_long_a_connection_may_take(postgresql_engine: Engine) -> None:
    url = postgresql_engine.url.update_query_dict({"tcp_user_timeout": "7000"})
    told = {}
    for each in (postgresql_engine.url, url):
        engine = open_engine(each.render_as_string(hide_password=False))
        with reading(engine) as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            parameters = raw.info.get_parameters()
        told[each] = parameters["connect_timeout"], parameters["tcp_user_timeout"]
        engine.dispose()
    assert list(told.values()) == [("10", "60000"), ("10", "7000")]


@pytest.mark.parametrize("back", [False, True])
def test_what_would_be_lost_with_a_file_that_is_gone_is_not_written(
    tmp_path: Path, back: bool
) -> None:
    file = tmp_path / "dicomai.db"
    engine = open_engine(f"sqlite:///{file}")
    upgrade(engine)
    with writing(engine) as connection:
        hosts.note_ingested(connection, "here", NOW, NOW)
    for each in tmp_path.glob("dicomai.db*"):
        each.rename(each.with_name(f"old-{each.name}"))
    if back:
        other = open_engine(f"sqlite:///{file}")
        upgrade(other)
        other.dispose()
    for edge in (writing, reading):
        with pytest.raises(DatabaseError, match=r"taken away|does not exist"), edge(engine):
            pass
    engine.dispose()


def _asks_for_a_password(listener: socket.socket) -> None:
    """Do as PostgreSQL does until it knows who calls (its protocol 3.0, start-up)."""
    with suppress(OSError):
        while True:
            wire, _ = listener.accept()
            with wire:
                while len(request := wire.recv(1000)) == 8:  # for encryption
                    wire.sendall(b"N")
                if request:
                    wire.sendall(b"R\0\0\0\x08\0\0\0\x03")
                    wire.recv(1000)


def test_a_password_that_is_missing_is_told_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    monkeypatch.delenv("PGPASSWORD", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_asks_for_a_password, args=(listener,), daemon=True).start()
        engine = open_engine(f"postgresql://dicomai@127.0.0.1:{listener.getsockname()[1]}/dicomai")
        with pytest.raises(DatabaseError) as caught, reading(engine):
            pass
        engine.dispose()
    assert "no password supplied" in caught.value.sentence
    assert ".pgpass" in caught.value.sentence
