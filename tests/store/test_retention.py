"""What goes and what stays, also when the one who deletes is killed between two steps."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import pytest
from catalogue_rows import (
    AGEING,
    NOW,
    add,
    analysed,
    arrive,
    claimed,
    finish,
    instance,
    job,
    sha256,
    wanted,
)
from sqlalchemy import Connection, Engine, event, update

from dicomai.dicom.dates import Instant, Microseconds, seconds
from dicomai.dicom.uid import SeriesInstanceUID, SOPInstanceUID, StudyInstanceUID
from dicomai.errors import InputError, TransientError
from dicomai.store import (
    archive,
    claims,
    decisions,
    deliveries,
    events,
    hosts,
    instances,
    jobs,
    promises,
    reissues,
    retention,
    retrievals,
    schema,
    studies,
    waiting_routes,
)
from dicomai.store.arrivals import StudyGoing
from dicomai.store.deliveries import DeliveryObject
from dicomai.store.engine import reading, writing
from dicomai.store.job import JobId
from dicomai.store.promises import Asked
from dicomai.store.retention import Keep
from dicomai.store.retrievals import NewRetrieval
from dicomai.store.waiting_routes import WaitingRoute

STUDY = StudyInstanceUID("1.2.3")
DAY = seconds(86400)
KEEP = Keep(received=seconds(30 * 86400), produced=seconds(365 * 86400), jobs=DAY)
LATER = Instant(NOW + 31 * DAY)
MUCH_LATER = Instant(NOW + 366 * DAY)


def decided(engine: Engine, study: str = "1.2.3") -> None:
    with writing(engine) as connection:
        decisions.set_decided(connection, StudyInstanceUID(study), "Whole.", NOW)


def with_files(engine: Engine, data: Path, study: str = "1.2.3") -> list[Path]:
    """Write the files that the rows of a study name."""
    (data / "archive" / "00").mkdir(parents=True, exist_ok=True)
    with reading(engine) as connection:
        paths = [data / row.path for row in instances.of_study(connection, StudyInstanceUID(study))]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 100)
    return paths


def one_after_the_other(engine: Engine, data: Path, studies: int) -> None:
    """Have decided studies 1.2.0, 1.2.1 and so on, each with its files."""
    for number in range(studies):
        study = f"1.2.{number}"
        arrive(engine, study, received_at=Instant(NOW + number))
        decided(engine, study)
        with_files(engine, data, study)


def produce(engine: Engine) -> None:
    add(engine, wanted(destinations=()))
    row = instance("1.2.3", "1.2.3.9", file="seg", origin="produced", series="1.2.3.9")
    assert finish(engine, claimed(engine).held, (row,)) == "done"


def test_received_images_go_first_and_our_results_later(engine: Engine, tmp_path: Path) -> None:
    arrive(engine, count=2)
    produce(engine)
    decided(engine)
    ct1, ct2, seg = with_files(engine, tmp_path)
    assert retention.delete_expired(engine, tmp_path, KEEP, Instant(NOW + 29 * DAY)) == 0
    assert retention.delete_expired(engine, tmp_path, KEEP, LATER) == 1
    assert [path.exists() for path in (ct1, ct2, seg)] == [False, False, True]
    with reading(engine) as connection:
        study = studies.get(connection, STUDY)
        assert study is not None
        assert (study.status, study.instances) == ("decided", 1)
        assert events.story(connection, STUDY)
    assert retention.delete_expired(engine, tmp_path, KEEP, MUCH_LATER) == 1
    assert not seg.exists()
    with reading(engine) as connection:
        assert studies.get(connection, STUDY) is None
        assert not events.story(connection, STUDY)


@pytest.mark.parametrize("state", ["queued", "running", "waiting", "held"])
def test_the_input_of_an_unfinished_job_stays(engine: Engine, tmp_path: Path, state: str) -> None:
    (added,) = arrive(engine)
    # A job of another study takes this one as a prior, and one of its own is there too.
    arrive(engine, "1.2.4", received_at=LATER)
    prior = wanted("1.2.3", inputs=(added.instance_id,)).inputs
    new = wanted("1.2.4")
    number = add(engine, replace(new, inputs=prior)).job_id
    if state != "queued":
        held = claimed(engine).held
        if state != "running":
            error = "transient" if state == "waiting" else "config"
            with writing(engine) as connection:
                jobs.fail(connection, held, error, "Why.", "load", "", NOW)
    assert job(engine, number).state == state
    decided(engine)
    (file,) = with_files(engine, tmp_path)
    assert retention.delete_expired(engine, tmp_path, KEEP, MUCH_LATER) == 0
    assert retention.make_room(engine, tmp_path, 2**62, MUCH_LATER) == 0
    candidate = retention.Candidate(study_instance_uid=STUDY, origins=("received",))
    with writing(engine) as connection:
        assert not retention.begin(connection, candidate, MUCH_LATER, MUCH_LATER)
        jobs.cancel(connection, number, "No longer wanted.", NOW)
    assert file.exists()
    assert retention.delete_expired(engine, tmp_path, KEEP, MUCH_LATER) == 1
    assert not file.exists()


def test_an_unfinished_job_keeps_no_study_but_those_that_it_takes(
    engine: Engine, tmp_path: Path
) -> None:
    (added,) = arrive(engine)
    add(engine, wanted(inputs=(added.instance_id,), destinations=()))
    assert finish(engine, claimed(engine).held) == "done"
    decided(engine)
    (file,) = with_files(engine, tmp_path)
    arrive(engine, "1.2.4", received_at=LATER)
    add(engine, wanted("1.2.4", "f2"))
    assert retention.delete_expired(engine, tmp_path, KEEP, LATER) == 1
    assert not file.exists()


def test_a_study_that_came_by_a_clock_of_1970_stays(engine: Engine, tmp_path: Path) -> None:
    arrive(engine)
    decided(engine)
    with_files(engine, tmp_path)
    with writing(engine) as connection:
        connection.execute(update(schema.studies).values(last_object_at=seconds(30)))
    assert retention.delete_expired(engine, tmp_path, KEEP, MUCH_LATER) == 0
    assert retention.make_room(engine, tmp_path, 2**62, MUCH_LATER) == 0


def test_a_study_that_a_route_waits_for_stays(engine: Engine, tmp_path: Path) -> None:
    arrive(engine)
    decided(engine)
    with_files(engine, tmp_path)
    waiting = WaitingRoute(study_instance_uid=STUDY, route="x-ray", because="No weights.")
    candidate = retention.Candidate(study_instance_uid=STUDY, origins=("received",))
    with writing(engine) as connection:
        waiting_routes.add(connection, waiting, NOW)
        assert not retention.begin(connection, candidate, MUCH_LATER, MUCH_LATER)
    assert retention.delete_expired(engine, tmp_path, KEEP, MUCH_LATER) == 0
    assert retention.make_room(engine, tmp_path, 2**62, MUCH_LATER) == 0
    with writing(engine) as connection:
        assert waiting_routes.remove(connection, waiting)
    assert retention.delete_expired(engine, tmp_path, KEEP, MUCH_LATER) == 1


def test_a_study_that_is_held_goes_though_a_route_had_waited_for_it(
    engine: Engine, tmp_path: Path
) -> None:
    arrive(engine)
    decided(engine)
    with_files(engine, tmp_path)
    waiting = WaitingRoute(study_instance_uid=STUDY, route="x-ray", because="No weights.")
    with writing(engine) as connection:
        waiting_routes.add(connection, waiting, NOW)
        decisions.hold(connection, STUDY, "Two patients.", NOW)
        assert not waiting_routes.due(connection, (), LATER)
    assert retention.delete_expired(engine, tmp_path, KEEP, MUCH_LATER) == 1


def test_a_study_that_nobody_decided_on_stays(engine: Engine, tmp_path: Path) -> None:
    arrive(engine)
    with_files(engine, tmp_path)
    assert retention.delete_expired(engine, tmp_path, KEEP, MUCH_LATER) == 0


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_whoever_comes_next_goes_on_with_a_deletion(
    engine: Engine, tmp_path: Path, steps: int
) -> None:
    arrive(engine, count=3)
    decided(engine)
    files = with_files(engine, tmp_path)
    candidate = retention.Candidate(study_instance_uid=STUDY, origins=("received", "retrieved"))
    with writing(engine) as connection:
        assert retention.begin(connection, candidate, LATER, LATER)
    for path in files[: steps - 1]:
        path.unlink()
    # Killed here. Meanwhile nothing is taken for the study: its files are going.
    with pytest.raises(StudyGoing):
        arrive(engine, received_at=LATER)
    assert retention.delete_marked(engine, tmp_path, LATER) == 1
    assert not any(path.exists() for path in files)
    with reading(engine) as connection:
        assert studies.get(connection, STUDY) is None
    assert retention.delete_marked(engine, tmp_path, LATER) == 0
    assert arrive(engine, received_at=LATER)[0].outcome == "new"


def test_room_is_made_from_the_oldest_on(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_after_the_other(engine, tmp_path, 3)

    def free(_: Path) -> int:
        return 300 - 100 * len(list(tmp_path.rglob("*.dcm")))

    monkeypatch.setattr(retention, "free_bytes", free)
    assert retention.make_room(engine, tmp_path, 200, LATER) == 2
    assert [path.parts[-3] for path in tmp_path.rglob("*.dcm")] == ["1.2.2"]


def test_the_oldest_are_looked_for_once_and_while_others_may_write(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_after_the_other(engine, tmp_path, 3)
    looked: list[bool] = []

    def note(connection: Connection, _: object, statement: str, *_more: object) -> None:
        if statement.startswith("SELECT") and " BETWEEN " in statement:
            looked.append(bool(connection.get_execution_options().get("dicomai_writing")))

    monkeypatch.setattr(
        retention, "free_bytes", lambda _: 300 - 100 * len(list(tmp_path.rglob("*.dcm")))
    )
    event.listen(engine, "before_cursor_execute", note)
    try:
        assert retention.make_room(engine, tmp_path, 200, LATER) == 2
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert looked == [False]


@pytest.mark.parametrize("mounted_at", ["the archive", "above it"])
def test_nothing_goes_while_the_archive_is_away(
    engine: Engine, tmp_path: Path, mounted_at: str
) -> None:
    """Its files would stay, and nobody would know of them."""
    one_after_the_other(engine, tmp_path, 2)
    kept = tmp_path / "archive"
    away = kept.rename(tmp_path / "away")
    if mounted_at == "the archive":
        kept.mkdir()
    with pytest.raises(TransientError, match="Is its disk mounted"):
        retention.delete_expired(engine, tmp_path, KEEP, LATER)
    with pytest.raises(TransientError, match="Is its disk mounted"):
        retention.make_room(engine, tmp_path, 10**18, LATER)
    with reading(engine) as connection:
        assert [each.status for each in studies.listing(connection, 9)] == ["decided", "decided"]
    kept.rmdir() if kept.exists() else None
    away.rename(kept)
    assert retention.delete_expired(engine, tmp_path, KEEP, LATER) == 2
    assert not list(tmp_path.rglob("*.dcm"))


def test_no_study_goes_to_make_room_on_a_disk_that_is_not_the_archive_s(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_after_the_other(engine, tmp_path, 2)
    full = tmp_path
    monkeypatch.setattr(retention, "free_bytes", lambda path: 0 if path == full else 10**18)
    assert retention.make_room(engine, tmp_path, 200, LATER) == 0
    full = tmp_path / "archive"
    assert retention.make_room(engine, tmp_path, 200, LATER) == 2


def test_no_room_is_made_from_what_is_held_meanwhile(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_after_the_other(engine, tmp_path, 2)

    def free(_: Path) -> int:
        if not list(tmp_path.rglob("1.2.0.*.dcm")):
            with writing(engine) as connection:
                decisions.hold(connection, StudyInstanceUID("1.2.1"), "Two patients.", NOW)
        return 0

    monkeypatch.setattr(retention, "free_bytes", free)
    assert retention.make_room(engine, tmp_path, 200, LATER) == 1
    assert [path.parts[-3] for path in tmp_path.rglob("*.dcm")] == ["1.2.1"]


def test_a_file_that_stays_keeps_no_other_study(engine: Engine, tmp_path: Path) -> None:
    for number in range(3):
        arrive(engine, f"1.2.{number}")
        decided(engine, f"1.2.{number}")
    (stuck,) = with_files(engine, tmp_path, "1.2.0")
    with_files(engine, tmp_path, "1.2.1")
    stuck.unlink()
    stuck.mkdir()  # what can't be unlinked, even by root
    assert retention.delete_expired(engine, tmp_path, KEEP, LATER) == 2
    assert retention.delete_expired(engine, tmp_path, KEEP, LATER) == 0
    uid = StudyInstanceUID("1.2.0")
    with reading(engine) as connection:
        assert [each.study_instance_uid for each in studies.listing(connection, 9)] == [uid]
        told = [each for each in events.story(connection, uid) if each.kind == "study not deleted"]
    assert len(told) == 1
    assert f"{stuck} can't be removed (Is a directory). Look at its rights" in told[0].sentence
    stuck.rmdir()
    assert retention.delete_expired(engine, tmp_path, KEEP, LATER) == 1


def test_what_was_promised_stays_for_its_time_and_nothing_else_with_it(
    engine: Engine, tmp_path: Path
) -> None:
    one_after_the_other(engine, tmp_path, 2)
    kept, goes = StudyInstanceUID("1.2.0"), StudyInstanceUID("1.2.1")
    until = Instant(LATER + DAY)
    with writing(engine) as connection:
        (row,) = instances.of_study(connection, kept)
        asked = (Asked(sop_class_uid=row.sop_class_uid, sop_instance_uid=row.sop_instance_uid),)
        promises.note(connection, "CT1", "1.2.9", asked, NOW, 0, NOW)
        promise = promises.claim(connection, NOW)
        assert promise is not None
        assert promises.judge(connection, promise, asked, (kept,), until, NOW)
        assert promises.kept_until(connection, kept) == until
        assert promises.kept_until(connection, goes) is None
        # Another node may use the same Transaction UID.
        number = promises.note(connection, "CT2", "1.2.9", (), NOW, 1, NOW)
        other = promises.get(connection, number)
        assert other is not None
        assert other.state == "asked"
    assert retention.delete_expired(engine, tmp_path, KEEP, LATER) == 1
    with reading(engine) as connection:
        assert [each.study_instance_uid for each in studies.listing(connection, 9)] == [kept]
    assert retention.delete_expired(engine, tmp_path, KEEP, until) == 1


def test_files_are_gone_from_the_disk_before_the_catalogue_forgets_their_study(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_after_the_other(engine, tmp_path, 2)
    # Of one study a file stays that no row names, and so its folder; of the other nothing.
    (stays,) = (tmp_path / "archive").glob("*/1.2.0/*")
    (stays / "by hand").touch()
    goes = tmp_path / "archive" / "00"
    synced: list[tuple[Path, bool, int]] = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        with reading(engine) as connection:
            known = len(studies.listing(connection, 9))
        synced.append((path, any(path.rglob("*.dcm")), known))

    monkeypatch.setattr(os, "fsync", fsync)
    assert retention.delete_expired(engine, tmp_path, KEEP, LATER) == 2
    # The nearest that is left of the folders that held it.
    assert synced == [(stays, False, 2), (goes, False, 1)]


def test_a_study_whose_files_may_come_back_stays_in_the_catalogue(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_after_the_other(engine, tmp_path, 1)

    def fsync(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fsync)
        assert retention.delete_expired(engine, tmp_path, KEEP, LATER) == 0
    with reading(engine) as connection:
        assert len(studies.listing(connection, 9)) == 1
    assert retention.delete_expired(engine, tmp_path, KEEP, LATER) == 1


def test_all_studies_go_whose_time_is_over(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_STUDIES", 2)
    for number in range(5):  # the one with files goes first, and its folders with it
        arrive(engine, f"1.2.{number}", count=3, received_at=Instant(NOW - number))
        decided(engine, f"1.2.{number}")
    monkeypatch.setattr(retention, "_FILES", 2)
    files = with_files(engine, tmp_path, "1.2.4")
    going_on = chain((True, True, True, True), repeat(False))
    assert retention.delete_expired(engine, tmp_path, KEEP, LATER, lambda: next(going_on)) == 2
    assert retention.delete_expired(engine, tmp_path, KEEP, LATER) == 3
    assert not any(path.exists() for path in files)
    with reading(engine) as connection:
        assert not studies.listing(connection, 9)


def test_a_study_that_came_again_before_its_turn_stays(engine: Engine) -> None:
    arrive(engine)
    decided(engine)
    candidate = retention.Candidate(study_instance_uid=STUDY, origins=("received",))
    arrive(engine, received_at=Instant(NOW + 1))  # the same bytes: it is not decided on again
    with writing(engine) as connection:
        assert not retention.begin(connection, candidate, NOW, LATER)
        assert retention.begin(connection, candidate, Instant(NOW + 1), LATER)


def test_what_comes_after_another_host_deleted_its_study_stays(
    engine: Engine, tmp_path: Path
) -> None:
    arrive(engine)
    decided(engine)
    with_files(engine, tmp_path)
    candidate = retention.Candidate(study_instance_uid=STUDY, origins=("received", "retrieved"))
    with writing(engine) as connection:
        assert retention.begin(connection, candidate, LATER, LATER)
    came: list[Path] = []

    def meanwhile() -> bool:
        """Have another host delete the study, and its sender send it again."""
        if not came:
            assert retention.delete_marked(engine, tmp_path, LATER) == 1
            arrive(engine, received_at=LATER)
            came.extend(with_files(engine, tmp_path))
        return True

    assert retention.delete_expired(engine, tmp_path, KEEP, LATER, meanwhile) == 0
    assert came[0].exists()
    with writing(engine) as connection:
        assert not retention.complete(connection, candidate, LATER)
        assert len(instances.of_study(connection, STUDY)) == 1


def test_no_room_is_made_where_no_file_can_be_removed(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        arrive(engine, f"1.2.{number}")
        decided(engine, f"1.2.{number}")
        (stuck,) = with_files(engine, tmp_path, f"1.2.{number}")
        stuck.unlink()
        stuck.mkdir()
    monkeypatch.setattr(retention, "free_bytes", lambda _: 0)
    assert retention.make_room(engine, tmp_path, 200, LATER) == 0
    with reading(engine) as connection:
        assert len(retention.going(connection)) == 1


def test_finished_jobs_are_pruned_unless_something_hangs_on_them(engine: Engine) -> None:
    number = analysed(engine)
    with writing(engine) as connection:
        assert retention.prune_jobs(connection, LATER) == 0  # its delivery is still to come
        taken = claims.claim(connection, "w1", ("deliver",), (), NOW)
        assert taken is not None
        jobs.fail(connection, taken.held, "refused", "No.", "send", "PACS1", NOW)
        assert retention.prune_jobs(connection, NOW) == 0
        assert retention.prune_jobs(connection, LATER) == 2
        assert jobs.get(connection, number) is None
        assert events.of_job(connection, number)


def test_the_story_of_a_study_that_never_came_goes_with_its_last_job(engine: Engine) -> None:
    with writing(engine) as connection:
        for node in ("PACS1", "PACS2"):
            wish = NewRetrieval(node=node, study_instance_uid=STUDY, ageing=AGEING)
            number = retrievals.queue(connection, wish, NOW).job_id
            later = NOW if node == "PACS1" else LATER
            jobs.cancel(connection, number, "Nobody wants it.", later)
        assert retention.prune_jobs(connection, Instant(NOW + 1)) == 1
        assert events.story(connection, STUDY)
        assert retention.prune_jobs(connection, Instant(LATER + 1)) == 1
        assert not events.story(connection, STUDY)


def test_a_study_takes_along_what_it_alone_was_fetched_for(engine: Engine, tmp_path: Path) -> None:
    coming = StudyInstanceUID("1.2.4")
    for uid in (STUDY, coming):
        wish = NewRetrieval(node="PACS1", study_instance_uid=uid, ageing=AGEING, purpose="a prior")
        with writing(engine) as connection:
            number = retrievals.queue(connection, wish, NOW).job_id
    with writing(engine) as connection:
        jobs.cancel(connection, JobId(number - 1), "It is here.", NOW)
    arrive(engine)
    decided(engine)
    with_files(engine, tmp_path)
    assert retention.delete_expired(engine, tmp_path, KEEP, LATER) == 1
    with reading(engine) as connection:
        assert retrievals.purpose_of(connection, STUDY) == ""
        assert retrievals.purpose_of(connection, coming) == "a prior"


def test_workers_that_were_killed_are_forgotten(engine: Engine) -> None:
    def worker(name: str, beat_at: Instant) -> hosts.Worker:
        return hosts.Worker(
            name=name,
            host="h1",
            device="cpu",
            kinds=("analyse",),
            models=(),
            started_at=NOW,
            beat_at=beat_at,
        )

    with writing(engine) as connection:
        for each in (worker("killed", NOW), worker("alive", LATER)):
            hosts.note_worker(connection, each)
        assert retention.prune_rest(connection, Instant(NOW + DAY)) == 1
        left = hosts.workers(connection, LATER, Microseconds(LATER))
    assert [each.name for each in left] == ["alive"]


def test_who_has_results_is_known_as_long_as_they_are_here(engine: Engine) -> None:
    arrive(engine)
    number = add(engine, wanted()).job_id
    result = instance("1.2.3", "1.2.3.9.1", file="seg", origin="produced", series="1.2.3.9")
    finish(engine, claimed(engine).held, (result,))
    delivery = claimed(engine, "deliver")
    with writing(engine) as connection:
        deliveries.start(connection, delivery.held, NOW)
        told = DeliveryObject(
            sop_instance_uid=result.sop_instance_uid, state="sent", status=0, sentence="", at=NOW
        )
        deliveries.note_objects(connection, delivery.held, [told])
        assert deliveries.finish(connection, delivery.held, {}, {}, NOW)
        assert retention.prune_jobs(connection, LATER) == 0
        assert reissues.delivered_to(connection, number) == {"PACS1"}


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str], Path]:
    def put(content: str) -> Path:
        source = tmp_path / "source.dcm"
        source.unlink(missing_ok=True)
        source.write_text(content)
        relative = archive.place(
            tmp_path,
            source,
            STUDY,
            SeriesInstanceUID("1.2.3.1"),
            SOPInstanceUID("1.2.3.1.0"),
            sha256(content),
        )
        return tmp_path / relative

    return put


def test_a_file_has_its_place_by_uid_and_digest_and_may_be_placed_again(
    tmp_path: Path, place: Callable[[str], Path]
) -> None:
    path = place("one")
    fan = sha256("1.2.3")[:2]
    name = f"1.2.3.1.0.{sha256('one')[:8]}.dcm"
    assert path == tmp_path / "archive" / fan / "1.2.3" / "1.2.3.1" / name
    assert place("one") == path
    assert place("two") != path
    assert path.read_text() == "one"


def test_a_place_is_durable_also_where_the_file_had_it_already(
    tmp_path: Path, place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr(os, "fsync", fsync)
    for _ in range(2):  # who placed it first may have been killed before it synced
        synced.clear()
        path = place("one")
        assert synced == [*reversed(path.parents[:5])]
    assert path.parents[4] == tmp_path


def test_other_bytes_under_the_same_name_are_not_overwritten(
    tmp_path: Path, place: Callable[[str], Path]
) -> None:
    path = place("one")
    path.unlink()
    path.write_text("damaged")
    longer = place("one")
    assert longer != path
    assert (path.read_text(), longer.read_text()) == ("damaged", "one")


@pytest.mark.parametrize("uid", ["../../etc", "1.2/3", "", "1..2", "1.2\x00.3"])
def test_no_uid_leaves_the_archive(tmp_path: Path, uid: str) -> None:
    source = tmp_path / "source.dcm"
    source.write_text("x")
    for position in range(3):
        uids = ["1.2.3", "1.2.3.1", "1.2.3.1.0"]
        uids[position] = uid
        with pytest.raises(InputError):
            archive.place(tmp_path, source, *uids, sha256("x"))
    assert not (tmp_path / "archive").exists()
