"""A disk without room: refused in time, nothing lost, and served again without a hand on it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicomai.dicom.dates import now
from dicomai.net.node import Node
from dicomai.service.ingest import ingest
from dicomai.service.spool_pass import Ingest
from dicomai.spool import reader
from dicomai.spool.folder import free_bytes
from dicomai.store import instances, schema
from dicomai.store.engine import open_engine, reading

Receiver = Any  # conftest's: importlib mode has no package to import it from
MakeReceiver = Callable[..., Receiver]
Scu = Any

RESERVE = 4 * 2**20
OBJECT = 2**19
# What folders and names take besides.
SLACK = 2**18


def _objects(scu: Scu, folder: Path, count: int) -> dict[str, bytes]:
    """Write objects of half a MiB, and return their data sets by file."""
    folder.mkdir()
    made = {}
    for number in range(count):
        uid = f"1.2.7.{number + 1}".encode()
        pixels = scu.element(0x0028, 0x0010, "US", b"\1\0")
        pixels += bytes.fromhex("e07f1000") + b"OW\0\0" + OBJECT.to_bytes(4, "little")
        data_set = scu.tiny(sop_instance=uid, tail=pixels + bytes([number]) * OBJECT)
        path = folder / f"{number:03}.dcm"
        path.write_bytes(_meta(uid.decode()) + data_set)
        made[str(path)] = data_set
    return made


def _meta(sop_instance: str) -> bytes:
    """Return preamble and meta information, by pydicom."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, sop_instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return bytes(128) + b"DICM" + buffer.getvalue()


def _send(storescu: str, port: int, files: list[str]) -> dict[str, str]:
    """Send files with DCMTK, whatever becomes of each; return what was answered for each."""
    command = [storescu, "-v", "-nh", "-aet", "CT1", "-aec", "DICOMAI", "127.0.0.1", str(port)]
    done = subprocess.run(
        [*command, *files], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    answers, current = {}, ""
    for line in done.stdout.splitlines():
        if line.startswith("I: Sending file: "):
            current = line.removeprefix("I: Sending file: ")
        elif line.startswith("I: Received Store Response ("):
            answers[current] = line.removeprefix("I: Received Store Response ").strip("()")
    return answers


def test_the_reserve_is_kept_and_what_was_accepted_is_ingested_from_a_full_disk(
    small_disk: Path,
    make_receiver: MakeReceiver,
    scu: Scu,
    peer: Callable[[str], str],
    tmp_path: Path,
) -> None:
    storescu = peer("storescu")
    data = small_disk / "data"
    for name in ("spool", "archive", "quarantine"):
        (data / name).mkdir(parents=True)
    receiver = make_receiver(spool=data / "spool", reserve_bytes=RESERVE)
    sent = _objects(scu, tmp_path / "sent", 40)

    answers = _send(storescu, receiver.port, list(sent))
    accepted = [path for path, answer in answers.items() if answer == "Success"]
    refused = [path for path, answer in answers.items() if answer != "Success"]
    assert list(answers) == [*accepted, *refused], "after the first refusal nothing was taken"
    assert {answers[path] for path in refused} == {"Refused: OutOfResources"}
    assert RESERVE - SLACK <= free_bytes(small_disk) <= RESERVE + OBJECT
    assert receiver.data_sets() == [sent[path] for path in accepted]

    # Ingest goes on: the reserve has room for its folders and names.
    (tmp_path / "dicomai.db").touch()
    engine = open_engine(f"sqlite:///{tmp_path / 'dicomai.db'}")
    schema.metadata.create_all(engine)
    config = Ingest(
        data=data,
        spool=data / "spool",
        quarantine=data / "quarantine",
        host="here",
        nodes={"ct1": Node(name="ct1", ae_title="CT1")},
    )
    assert ingest(engine, config, now).catalogued == len(accepted)
    with reading(engine) as connection:
        rows = instances.of_study(connection, "1.2.3.1")
    engine.dispose()
    kept = sorted(scu.data_set_of(data / row.path) for row in rows)
    assert kept == sorted(sent[path] for path in accepted)

    for row in rows:  # as retention does
        (data / row.path).unlink()
    again = _send(storescu, receiver.port, refused)
    assert set(again.values()) == {"Success"}
    assert receiver.data_sets() == [sent[path] for path in refused]


def test_room_in_the_middle_of_an_association_is_used_at_once(
    small_disk: Path, make_receiver: MakeReceiver, scu: Scu
) -> None:
    spool = small_disk / "spool"
    receiver = make_receiver(spool=spool, reserve_bytes=RESERVE)
    ballast = small_disk / "ballast"
    large = scu.tiny(tail=scu.element(0x0028, 0x0010, "US", b"\1\0") + bytes(OBJECT))
    with scu.calling(receiver.port) as association:
        assert scu.send(association, scu.tiny()) == 0
        ballast.write_bytes(bytes(free_bytes(small_disk) - RESERVE - OBJECT // 2))
        assert scu.send(association, large) == 0xA700
        ballast.unlink()
        assert scu.send(association, large) == 0
    assert receiver.data_sets() == [scu.tiny(), large]


def test_a_disk_that_fills_up_within_an_object_leaves_nothing_of_it(
    small_disk: Path, make_receiver: MakeReceiver, scu: Scu
) -> None:
    receiver = make_receiver(spool=small_disk / "spool", reserve_bytes=-(10**9))
    with scu.calling(receiver.port) as association:
        assert scu.send(association, scu.tiny(tail=bytes(20 * 2**20))) == 0xA700
        assert scu.send(association, scu.tiny()) == 0
    assert receiver.data_sets() == [scu.tiny()]
    assert not list(small_disk.rglob("*.part"))
    assert reader.waits(receiver.spool)
    assert free_bytes(small_disk) > 15 * 2**20
