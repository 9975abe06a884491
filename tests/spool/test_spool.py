"""What the spool keeps of associations and objects, whoever is killed."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dicomai.dicom.dates import Instant, now
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.spool import entries, quarantine, reader
from dicomai.spool.entries import End, Writer
from dicomai.spool.part import sync_bytes

Associate = Callable[..., Writer]
A, B = StudyInstanceUID("1.2.3"), StudyInstanceUID("1.2.4")


def test_objects_come_back_in_order_of_receipt_with_their_association(
    spool: Path, associate: Associate
) -> None:
    later = associate(1_700_000_000_000_001, calling_ae="MR1", node="mr1")
    earlier = associate()
    before = now()
    for number, writer in enumerate((later, earlier, later)):
        writer.add(A, (b"%d" % number,))
    found = list(reader.entries(spool))
    assert [entry.path.read_bytes() for entry in found] == [b"0", b"1", b"2"]
    assert [entry.association.node for entry in found] == ["mr1", "ct1", "mr1"]
    assert [entry.counter for entry in found] == [1, 1, 2]
    assert before <= found[0].received_at <= found[1].received_at <= now()
    assert [facts.node for facts in reader.associations(spool)] == ["ct1", "mr1"]
    assert found[0].association == later.facts


def test_an_association_is_open_until_its_end_is_written(spool: Path, associate: Associate) -> None:
    writer = associate()
    writer.add(A, (b"1",))
    writer.add(B, (b"2",))
    (seen,) = reader.open_associations(spool)
    assert seen.studies == {A, B}
    assert reader.ended(spool, writer.facts.id) is None
    writer.end("released", Instant(5))
    assert reader.open_associations(spool) == ()
    assert reader.ended(spool, writer.facts.id) == entries.End(at=Instant(5), how="released")


def test_names_are_the_same_on_a_disk_without_links(
    spool: Path, associate: Associate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_name: Path, _source: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    def seen() -> tuple[object, ...]:
        writer = associate()
        writer.add(A, (b"1",))
        (entry,) = reader.entries(spool)
        assert (reader.mark(entry), reader.mark(entry)) == (1, 2)
        names = {path.suffix for path in writer.folder.iterdir()}
        (before,) = reader.open_associations(spool)
        writer.end("aborted", Instant(5))
        after = reader.ended(spool, writer.facts.id)
        reader.remove(entry)
        assert reader.forget(spool, writer.facts.id)
        return names, before.studies, entry.association.node, after

    linked = seen()
    monkeypatch.setattr(Path, "hardlink_to", refuses)
    assert seen() == linked


_RECEIVE_UNTIL_KILLED = """
import signal, sys
from pathlib import Path
from dicomai.spool import entries
writer = entries.opened(
    Path(sys.argv[1]), calling_ae="CT1", called_ae="DICOMAI", address="127.0.0.1", node="ct1",
    started_at=1_700_000_000_000_000,
)
writer.add("1.2.3", (b"whole",))
def half():
    yield b"half"
    print("half", flush=True)
    signal.pause()
writer.add("1.2.3", half())
"""


def test_a_killed_receiver_leaves_a_lost_association_and_nothing_half(spool: Path) -> None:
    command = [sys.executable, "-c", _RECEIVE_UNTIL_KILLED, str(spool)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        (association,) = reader.open_associations(spool)
        (whole,) = reader.entries(spool)
        assert len(list(whole.path.parent.glob(".*.part"))) == 1
        child.kill()

    assert reader.open_associations(spool) == ()
    assert reader.ended(spool, association.facts.id) == entries.End(
        at=whole.received_at, how="lost"
    )
    entries.clean(spool, now())
    assert list(whole.path.parent.glob(".*.part")) == []
    assert [entry.path.read_bytes() for entry in reader.entries(spool)] == [b"whole"]


def test_a_lost_association_ended_with_its_last_object_when_that_is_ingested_too(
    spool: Path, associate: Associate
) -> None:
    writer = associate()
    first, last = (writer.add(A, (b"data",)) for _ in range(2))
    os.close(writer._lock)  # as a kill does
    for entry in (last, first):
        reader.remove(entry)
    assert reader.ended(spool, writer.facts.id) == entries.End(at=last.received_at, how="lost")


def test_an_object_that_is_being_written_holds_up_nothing(
    spool: Path, associate: Associate
) -> None:
    with associate().begin() as arriving:  # the rest of it may take hours
        arriving.write(b"half")
        assert reader.oldest_received_at(spool) is None


def test_an_object_counts_as_not_yet_ingested_before_the_clock_of_its_receipt_is_read(
    spool: Path, associate: Associate, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def clock() -> Instant:
        seen.append(reader.oldest_received_at(spool))
        return now()

    monkeypatch.setattr(entries, "now", clock)
    entry = associate().add(A, (b"data",))
    (_, at_receipt) = seen
    assert at_receipt is not None
    assert at_receipt <= entry.received_at
    assert reader.oldest_received_at(spool) == entry.received_at
    reader.remove(entry)
    assert reader.oldest_received_at(spool) is None


def test_what_a_killed_receiver_was_writing_holds_nothing_up(
    spool: Path, associate: Associate
) -> None:
    writer = associate()
    (writer.folder / f".000001-{1_700_000_000_000_000}.part").touch()
    assert reader.oldest_received_at(spool) == 1_700_000_000_000_000
    os.close(writer._lock)  # as a kill does
    assert reader.oldest_received_at(spool) is None


def test_an_entry_that_killed_ingest_twice_is_set_aside_with_the_reason(
    spool: Path, associate: Associate, tmp_path: Path
) -> None:
    folder = tmp_path / "quarantine"
    writer = associate()
    writer.add(A, (b"poison",))
    for attempt in (1, 2, 3):  # each is a new start of ingest
        (entry,) = reader.entries(spool)
        assert reader.mark(entry) == attempt
    assert attempt > reader.MAX_ATTEMPTS
    reason = "It killed ingest twice."
    name = quarantine.put(folder, entry.path, reason, Instant(7), entry.association)
    reader.remove(entry)
    assert list(reader.entries(spool)) == []
    assert (folder / name).read_bytes() == b"poison"
    assert quarantine.listing(folder) == (
        quarantine.Quarantined(
            name=name, reason="It killed ingest twice.", at=Instant(7), node="ct1"
        ),
    )


def test_setting_aside_may_be_killed_and_repeated(
    spool: Path, associate: Associate, tmp_path: Path
) -> None:
    folder = tmp_path / "quarantine"
    entry = associate().add(A, (b"bad",))
    first = quarantine.put(folder, entry.path, "Once.", Instant(7), entry.association)
    again = quarantine.put(folder, entry.path, "Twice.", Instant(8), entry.association)
    assert again == first
    (kept,) = quarantine.listing(folder)
    assert kept.reason == "Twice."


def test_a_sweep_takes_what_a_kill_left_half_in_the_quarantine(
    spool: Path, associate: Associate, tmp_path: Path
) -> None:
    folder = tmp_path / "quarantine"
    entry = associate().add(A, (b"bad",))
    quarantine.put(folder, entry.path, "Bad.", Instant(7), entry.association)
    kept = sorted(folder.iterdir())
    half = folder / ".1.json.01234567.part"
    half.touch()
    written = half.stat().st_mtime_ns // 1000
    assert quarantine.sweep(folder, Instant(written + quarantine.SWEPT_AFTER - 1)) == 0
    assert quarantine.sweep(folder, Instant(written + quarantine.SWEPT_AFTER)) == 1
    assert sorted(folder.iterdir()) == kept


def test_an_association_that_says_nothing_gives_ingest_nothing_to_do(
    spool: Path, associate: Associate
) -> None:
    writer = associate()
    assert not reader.waits(spool)
    entry = writer.add(A, (b"1",))
    assert reader.waits(spool)
    reader.remove(entry)
    assert not reader.waits(spool)
    writer.end("released", Instant(5))
    assert reader.waits(spool)


def test_an_attempt_that_ended_in_order_does_not_count(spool: Path, associate: Associate) -> None:
    entry = associate().add(A, (b"1",))
    for _ in range(5):
        assert reader.mark(entry) == 1
        reader.unmark(entry)


def test_an_association_is_forgotten_only_when_it_ended_and_is_empty(
    spool: Path, associate: Associate
) -> None:
    writer = associate()
    assert not reader.forget(spool, writer.facts.id)
    entry = writer.add(A, (b"1",))
    assert not reader.forget(spool, writer.facts.id)
    writer.end("released", Instant(5))
    assert not reader.forget(spool, writer.facts.id)
    reader.remove(entry)
    assert reader.forget(spool, writer.facts.id)
    assert list(spool.iterdir()) == []


def test_cleaning_takes_what_was_half_made_or_half_removed(
    spool: Path, associate: Associate
) -> None:
    alive = associate()
    (alive.folder / f".000009-{1_700_000_000_000_000}.part").touch()
    left, recent = (spool / f".new-1700000000000000-0000000{each}" for each in "01")
    for folder in (left, recent, spool / ".old-1700000000000000-00000000"):
        folder.mkdir()
    os.utime(left, (1_700_000_000,) * 2)
    entries.clean(spool, now())
    assert sorted(spool.iterdir()) == sorted([alive.folder, recent])
    assert len(list(alive.folder.glob(".*.part"))) == 1


def test_an_association_that_gets_no_lock_leaves_nothing(spool: Path, associate: Associate) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            associate()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not list(spool.iterdir())


def test_an_association_whose_lock_is_gone_counts_as_lost(
    spool: Path, associate: Associate
) -> None:
    writer = associate()
    entry = writer.add(A, (b"1",))
    os.close(writer._lock)  # as a kill does
    (writer.folder / entries.LOCK).unlink()
    assert reader.open_associations(spool) == ()
    assert reader.ended(spool, writer.facts.id) == End(at=entry.received_at, how="lost")


def test_what_comes_and_is_taken_in_leaves_no_file_open(
    spool: Path, associate: Associate, tmp_path: Path
) -> None:
    def taken_in() -> None:
        writer = associate()
        with writer.begin() as given_up:
            given_up.write(b"half")
        entry = writer.add(A, (b"1",))
        assert len(reader.open_associations(spool)) == 1
        sync_bytes(entry.path)
        quarantine.put(tmp_path / "quarantine", entry.path, "Bad.", Instant(7), entry.association)
        writer.end("released", Instant(5))
        reader.remove(entry)
        assert reader.forget(spool, writer.facts.id)

    taken_in()  # what is opened once stays open
    before = set(Path("/proc/self/fd").iterdir())
    taken_in()
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_receiver_cleans_while_ingest_forgets(
    spool: Path, associate: Associate, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = associate(), associate(1_700_000_000_000_001)
    for writer in (first, second):
        writer.end("released", Instant(5))
    is_dir, rename = Path.is_dir, Path.rename

    def is_dir_and_forgotten(self: Path) -> bool:
        there = is_dir(self)
        if self == first.folder:  # as the glob looks, before it lists
            monkeypatch.undo()
            assert reader.forget(spool, first.facts.id)
        return there

    monkeypatch.setattr(Path, "is_dir", is_dir_and_forgotten)
    entries.clean(spool, now())
    monkeypatch.undo()

    def renamed_then_cleaned(self: Path, target: Path) -> None:
        rename(self, target)
        entries.clean(spool, now())

    monkeypatch.setattr(Path, "rename", renamed_then_cleaned)
    assert reader.forget(spool, second.facts.id)
    assert list(spool.glob(".old-*")) == []


@pytest.mark.parametrize(
    "facts",
    [
        {"calling_ae": "A/../B,%2F", "node": "Röntgen, Haus 3/4", "address": "fe80::1%eth0"},
        {"calling_ae": "\n\t \x7f", "called_ae": "..", "node": "放射線科" * 12},
        {"retrieved": True},
    ],
)
def test_facts_that_no_file_could_be_called_come_back_as_they_were(
    spool: Path, associate: Associate, facts: dict[str, object]
) -> None:
    writer = associate(**facts)
    writer.add(A, (b"1",))
    (read,) = reader.associations(spool)
    assert read == writer.facts
    assert {key: getattr(read, key) for key in facts} == facts
    assert len(list(spool.rglob("*"))) == len(list(writer.folder.iterdir())) + 1


def test_an_object_that_is_let_go_of_leaves_nothing(spool: Path, associate: Associate) -> None:
    writer = associate()
    arriving = writer.begin()
    arriving.write(b"half", memoryview(b" of it"))
    with arriving.mapped() as written:
        assert bytes(written) == b"half of it"
    arriving.close()
    arriving.close()
    assert not list(writer.folder.glob(".*"))
    assert list(reader.entries(spool)) == []
    assert writer.add(A, (b"next",)).counter == 2
