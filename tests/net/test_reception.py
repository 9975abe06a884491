"""What one association's reception keeps and says, without a connection."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian

from dicomai.dicom.dates import now
from dicomai.net.admission import COMMITMENT, MPPS, VERIFICATION
from dicomai.net.reception import (
    DOES_NOT_MATCH,
    NOT_SUPPORTED,
    OUT_OF_RESOURCES,
    SUCCESS,
    Reception,
    Request,
)
from dicomai.spool import reader

HEAD = (
    b"\x08\x00\x16\x00\x1a\x00\x00\x00" + CTImageStorage.encode() + b"\0"
    b"\x08\x00\x18\x00\x04\x00\x00\x001.2\0"
    b"\x20\x00\x0d\x00\x04\x00\x00\x001.3\0"
    b"\x20\x00\x0e\x00\x04\x00\x00\x001.4\0"
)


@pytest.fixture
def reception(tmp_path: Path) -> Reception:
    return Reception(
        spool=tmp_path,
        reserve_bytes=0,
        object_bytes=10**9,
        node="CT1",
        calling_ae="CT1",
        called_ae="DICOMAI",
        address="127.0.0.1",
        started_at=now(),
    )


def test_a_refusal_names_no_more_of_a_uid_than_a_uid_may_have(reception: Reception) -> None:
    incoming = reception.begin(
        Request(
            sop_class_uid=CTImageStorage,
            sop_instance_uid="1." * 30_000,
            abstract_syntax=CTImageStorage,
            transfer_syntax=ImplicitVRLittleEndian,
        )
    )
    incoming.write(memoryview(HEAD))
    answer = incoming.finish()
    assert answer.status == DOES_NOT_MATCH
    assert "1.1.1" in answer.sentence
    assert len(answer.sentence) < 200


def test_a_message_after_a_failed_sync_rests_on_no_name_that_was_there(
    reception: Reception, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        reception.keep_message("create", b"lost")
    (uncertain,) = associations_of(reception)
    monkeypatch.undo()
    reception.keep_message("create", b"kept")
    (other,) = associations_of(reception) - {uncertain}
    assert [file.read_bytes() for file in (reception.spool / other).glob("*.create")] == [b"kept"]
    assert list((reception.spool / uncertain).glob("end-*-lost"))


def test_a_release_after_a_refusal_for_want_of_room_says_nothing_of_the_study(
    reception: Reception,
) -> None:
    assert stored(reception, HEAD, "1.2") == SUCCESS
    reception.reserve_bytes = 10**18
    assert stored(reception, HEAD, "1.2") == OUT_OF_RESOURCES
    reception.reserve_bytes = 0
    assert stored(reception, HEAD, "1.2") == SUCCESS
    reception.end("released")
    (association,) = reader.associations(reception.spool)
    ended = reader.ended(reception.spool, association.id)
    assert ended is not None
    assert ended.how == "aborted"


def test_a_release_after_what_is_refused_for_good_is_a_clean_one(reception: Reception) -> None:
    assert stored(reception, HEAD, "1.2") == SUCCESS
    assert stored(reception, HEAD, "1.9") == DOES_NOT_MATCH
    reception.end("released")
    (association,) = reader.associations(reception.spool)
    ended = reader.ended(reception.spool, association.id)
    assert ended is not None
    assert ended.how == "released"


@pytest.mark.parametrize("service", [VERIFICATION, MPPS, COMMITMENT])
def test_no_object_comes_in_a_context_of_another_service(
    reception: Reception, service: str
) -> None:
    # A node that may only commit would have a way to store.
    data_set = HEAD.replace(
        struct.pack("<L", 26) + CTImageStorage.encode() + b"\0",
        struct.pack("<L", len(service)) + service.encode(),
    )
    assert stored(reception, data_set, "1.2", service) == NOT_SUPPORTED
    assert list(reception.spool.iterdir()) == []


def stored(
    reception: Reception, data_set: bytes, sop_instance: str, sop_class: str = CTImageStorage
) -> int:
    incoming = reception.begin(
        Request(
            sop_class_uid=sop_class,
            sop_instance_uid=sop_instance,
            abstract_syntax=sop_class,
            transfer_syntax=ImplicitVRLittleEndian,
        )
    )
    incoming.write(memoryview(data_set))
    return incoming.finish().status


def associations_of(reception: Reception) -> set[str]:
    return {folder.name for folder in reception.spool.iterdir() if folder.name[0] != "."}
