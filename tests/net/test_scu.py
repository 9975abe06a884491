"""What we ask of nodes, of DCMTK's and of one that follows a script of faults."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import ConfigError, RefusedError, TransientError
from dicomai.net import calling, commitment_calling, find, move, scu
from dicomai.net.calling import PutOff
from dicomai.net.commitment import CommitmentRequest
from dicomai.net.node import Node
from dicomai.net.scu import StoreOutcome
from dicomai.net.study_identity import StudyIdentity, find_study_identity
from dicomai.net.suboperations import Wanted
from dicomai.net.transcode import transcoded

CT = "1.2.840.10008.5.1.4.1.1.2"
US = "1.2.840.10008.5.1.4.1.1.6.1"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
VERIFICATION = "1.2.840.10008.1.1"
STUDY = StudyInstanceUID("1.2.3")
Peer = Callable[..., Node]


@pytest.fixture
def faulty_peer(free_port: int) -> Iterator[Peer]:
    """Start a peer with a script; gives the node that it is."""
    running = []

    def start(**script: object) -> Node:
        program = Path(__file__).with_name("faulty_peer.py")
        process = subprocess.Popen(
            [sys.executable, str(program), str(free_port), json.dumps(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return Node(name="PACS1", ae_title="PACS1", host="127.0.0.1", port=free_port)

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def scu_peer(scu: Any) -> Any:
    """The hand-made client of conftest, under a name that is not our module's."""
    return scu


@pytest.fixture
def ct(sample_data: Path) -> Path:
    return sample_data / "transfer-syntaxes" / "ct-small" / "CT_small.dcm"


def test_dcmtk_answers_an_echo_and_keeps_what_it_is_sent(
    storescp: Any, sample_data: Path, ct: Path
) -> None:
    node = Node(name="PACS1", ae_title="STORESCP", host="127.0.0.1", port=storescp.port)
    answer = scu.echo(node, "DICOMAI")
    assert answer.ok, answer.sentence
    assert answer.sentence == f"PACS1 answers at 127.0.0.1 port {storescp.port}."
    told: list[StoreOutcome] = []
    folder = sample_data / "transfer-syntaxes"
    objects = [ct, folder / "ct512" / "ct512_explicit-be.dcm", folder / "ct512" / "ct512_rle.dcm"]
    outcomes = scu.store_objects(node, "DICOMAI", objects, told.append)
    assert [(each.kind, each.status) for each in outcomes] == [("ok", 0)] * 3
    assert [each.path for each in outcomes] == objects
    assert list(outcomes) == told
    kept = {dcmread(path).SOPInstanceUID: dcmread(path) for path in storescp.files()}
    for path in objects:  # RLE isn't one of storescp's, so it is decoded on the way
        sent = dcmread(path)
        np.testing.assert_array_equal(kept[sent.SOPInstanceUID].pixel_array, sent.pixel_array)


@pytest.mark.parametrize("target", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("source", ["explicit-be", "deflated", "rle", "j2k-lossless-90"])
def test_what_the_peer_lacks_is_transcoded(
    sample_data: Path, tmp_path: Path, source: str, target: str
) -> None:
    path = sample_data / "transfer-syntaxes" / "ct512" / f"ct512_{source}.dcm"
    transcoded(path, tmp_path / "out.dcm", target)
    before, after = dcmread(path), dcmread(tmp_path / "out.dcm")
    assert after.file_meta.TransferSyntaxUID == target
    assert after.SOPInstanceUID == before.SOPInstanceUID
    np.testing.assert_array_equal(after.pixel_array, before.pixel_array)


def test_each_status_of_a_peer_gets_its_kind_and_its_words(faulty_peer: Peer, ct: Path) -> None:
    stores = [0, 0xB000, 0xA700, 0xA900, 0xC000, 0x0110, 0x0122, 0x0111, 0x0ABC]
    node = faulty_peer(takes={CT: [EXPLICIT]}, stores=stores, comment="No thanks")
    outcomes = scu.store_objects(node, "DICOMAI", [ct] * len(stores), lambda _: None)
    assert [outcome.status for outcome in outcomes] == stores
    assert [outcome.kind for outcome in outcomes] == [
        "ok",
        "warning",
        "transient",
        "refused",
        "refused",
        "transient",
        "refused",
        "warning",
        "refused",
    ]
    assert outcomes[2].sentence.startswith(
        "PACS1 is out of resources: its disk may be full: CT Image Storage 1.3.6.1.4.1.5962.1.1.1"
    )
    assert '(status 0xA700, "No thanks")' in outcomes[2].sentence


def test_a_class_that_is_not_taken_is_refused_and_the_rest_is_sent(
    faulty_peer: Peer, ct: Path, sample_data: Path
) -> None:
    node = faulty_peer(takes={CT: [IMPLICIT]})
    us = sample_data / "transfer-syntaxes" / "colour" / "examples_rgb_color.dcm"
    outcomes = scu.store_objects(node, "DICOMAI", [us, ct], lambda _: None)
    assert [outcome.kind for outcome in outcomes] == ["refused", "ok"]
    assert outcomes[0].sentence == (
        "PACS1 takes no Ultrasound Image Storage from DICOMAI. Allow it there."
    )
    (alone,) = scu.store_objects(node, "DICOMAI", [us], lambda _: None)
    assert alone.sentence == outcomes[0].sentence


def test_what_cannot_be_decoded_is_refused_with_the_reason(
    faulty_peer: Peer, sample_data: Path
) -> None:
    node = faulty_peer(takes={CT: [EXPLICIT]})
    path = sample_data / "transfer-syntaxes" / "ct512" / "ct512_jpeg-progressive-55-retired.dcm"
    (outcome,) = scu.store_objects(node, "DICOMAI", [path], lambda _: None)
    assert outcome.kind == "refused"
    assert "can't be decoded" in outcome.sentence
    assert "Allow that transfer syntax there." in outcome.sentence


def test_a_node_that_takes_a_class_in_another_compression_alone_refuses_that_object(
    faulty_peer: Peer, sample_data: Path
) -> None:
    node = faulty_peer(takes={CT: ["1.2.840.10008.1.2.4.70"]})
    folder = sample_data / "transfer-syntaxes" / "ct512"
    files = [folder / "ct512_rle.dcm", folder / "ct512_jpeg-lossless-sv1-70.dcm"]
    outcomes = scu.store_objects(node, "DICOMAI", files, lambda _: None)
    assert [outcome.kind for outcome in outcomes] == ["refused", "ok"]
    assert outcomes[0].sentence == (
        f"PACS1 takes CT Image Storage {outcomes[0].sop_instance_uid} neither in RLE Lossless nor "
        "in Explicit or Implicit VR Little Endian. Allow one of them there."
    )


@pytest.mark.parametrize("fault", ["abort", "die"])
def test_an_association_that_ends_midway_leaves_the_rest_for_later(
    faulty_peer: Peer, ct: Path, fault: str
) -> None:
    node = faulty_peer(takes={CT: [EXPLICIT]}, stores=[0, fault])
    outcomes = scu.store_objects(node, "DICOMAI", [ct] * 4, lambda _: None)
    assert [outcome.kind for outcome in outcomes] == ["ok", *["transient"] * 3]
    assert [outcome.unanswered for outcome in outcomes] == [False, True, False, False]
    assert "PACS1 gave no answer to CT Image Storage" in outcomes[1].sentence


def test_the_bytes_of_the_file_are_sent_in_every_transfer_syntax_and_the_end_is_a_release(
    receiver: Any, scu_peer: Any, sample_data: Path
) -> None:
    node = Node(name="US", ae_title="DICOMAI", host="127.0.0.1", port=receiver.port)
    files = sorted((sample_data / "transfer-syntaxes" / "ct512").glob("*.dcm"))
    outcomes = scu.store_objects(node, "CT1", files, lambda _: None)
    assert {outcome.kind for outcome in outcomes} == {"ok"}
    assert receiver.data_sets() == [scu_peer.data_set_of(path) for path in files]
    (line,) = scu_peer.eventually(receiver.lines)
    assert (line["ended"], line["stored"]) == ("released", len(files))


@pytest.mark.parametrize("pdu", [0, 128, 1001])
def test_a_peer_may_take_pdus_of_any_length(faulty_peer: Peer, ct: Path, pdu: int) -> None:
    node = faulty_peer(takes={CT: [EXPLICIT]}, stores=[0, 0xB000], pdu=pdu)
    outcomes = scu.store_objects(node, "DICOMAI", [ct, ct], lambda _: None)
    assert [outcome.status for outcome in outcomes] == [0, 0xB000]


def test_a_peer_that_dies_within_an_object_leaves_it_for_later(
    faulty_peer: Peer, ct: Path, tmp_path: Path
) -> None:
    large = tmp_path / "large.dcm"
    large.write_bytes(ct.read_bytes() + bytes(30 * 2**20))
    node = faulty_peer(takes={CT: [EXPLICIT]}, dies_after_bytes=100_000)
    outcomes = scu.store_objects(node, "DICOMAI", [ct, large, ct], lambda _: None)
    assert [outcome.kind for outcome in outcomes] == ["ok", "transient", "transient"]
    assert "PACS1 gave no answer to CT Image Storage" in outcomes[1].sentence


def test_a_file_that_goes_before_its_turn_is_left_for_later_alone(
    faulty_peer: Peer, ct: Path, tmp_path: Path
) -> None:
    goes = tmp_path / "goes.dcm"
    goes.write_bytes(ct.read_bytes())
    node = faulty_peer(takes={CT: [EXPLICIT]})
    outcomes = scu.store_objects(
        node, "DICOMAI", [ct, goes, ct], lambda _: goes.unlink(missing_ok=True)
    )
    assert [outcome.kind for outcome in outcomes] == ["ok", "transient", "ok"]
    assert [outcome.ours for outcome in outcomes] == [False, True, False]
    assert outcomes[1].sentence == (
        f"{goes} can't be read: No such file or directory. Look at its disk."
    )


def test_want_of_room_to_transcode_is_ours_and_passes(
    faulty_peer: Peer, ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = faulty_peer(takes={CT: [IMPLICIT]})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    (outcome,) = scu.store_objects(node, "DICOMAI", [ct], lambda _: None)
    assert (outcome.kind, outcome.ours) == ("transient", True)
    assert "Look at its disk, and at the room for temporary files." in outcome.sentence
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (outcome,) = scu.store_objects(node, "DICOMAI", [ct], lambda _: None)
    assert outcome.kind == "ok"


def test_a_file_that_is_none_is_refused_alone(faulty_peer: Peer, ct: Path, tmp_path: Path) -> None:
    node = faulty_peer(takes={CT: [EXPLICIT]})
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no DICOM")
    outcomes = scu.store_objects(node, "DICOMAI", [broken, ct], lambda _: None)
    assert [outcome.kind for outcome in outcomes] == ["refused", "ok"]
    assert str(broken) in outcomes[0].sentence


def test_a_peer_that_is_not_there_is_worth_another_try(free_port: int, ct: Path) -> None:
    node = Node(name="PACS1", ae_title="PACS1", host="127.0.0.1", port=free_port)
    (outcome,) = scu.store_objects(node, "DICOMAI", [ct], lambda _: None)
    assert outcome.kind == "transient"
    assert f"PACS1 can't be reached at 127.0.0.1 port {free_port}: connection refused" in (
        outcome.sentence
    )
    assert not scu.echo(node, "DICOMAI").ok
    with pytest.raises(TransientError):
        find_study_identity(node, "DICOMAI", STUDY)


class CalledOff(Exception):
    """Nobody waits any more."""


CALLS: dict[str, Callable[[Node, Path, calling.GoOn], object]] = {
    "store": lambda node, ct, go_on: scu.store_objects(
        node, "US", [ct], lambda _: None, go_on=go_on
    ),
    "compare": lambda node, _, go_on: find_study_identity(node, "US", STUDY, go_on=go_on),
    "find": lambda node, _, go_on: list(
        find.find(node, "US", find.Query(level="study", keys={"StudyInstanceUID": ""}), go_on=go_on)
    ),
    "move": lambda node, _, go_on: move.move(
        node, "US", Wanted(study_instance_uid=STUDY), lambda _: None, go_on
    ),
    "commit": lambda node, _, go_on: commitment_calling.ask(
        node,
        "US",
        CommitmentRequest(transaction_uid="1.2", objects=()),
        lambda: pytest.fail("nothing was reported"),
        lambda: True,
        go_on,
    ),
}


# All connect in one place, so TLS is tried with one.
@pytest.mark.parametrize(("call", "tls"), [*((call, False) for call in CALLS), ("store", True)])
def test_a_call_that_a_silent_node_does_not_take_can_be_called_off(
    silent_port: int, ct: Path, call: str, tls: bool
) -> None:
    node = Node(name="PACS1", ae_title="PACS1", host="127.0.0.1", port=silent_port, tls=tls)
    began = time.monotonic()

    def go_on() -> None:
        if time.monotonic() - began > 0.3:
            raise CalledOff

    with pytest.raises(CalledOff):
        CALLS[call](node, ct, go_on)
    assert time.monotonic() - began < 5


def test_what_listens_and_is_no_dicom_node_is_said(free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)) as server:

        def hang_up() -> None:
            connection, _ = server.accept()
            connection.close()

        other = threading.Thread(target=hang_up)
        other.start()
        node = Node(name="PACS1", ae_title="PACS1", host="127.0.0.1", port=free_port)
        answer = scu.echo(node, "DICOMAI")
        other.join()
    assert not answer.ok
    assert "Is it a DICOM node?" in answer.sentence


def test_a_rejection_says_what_to_add_where(faulty_peer: Peer, ct: Path) -> None:
    node = faulty_peer(takes={CT: [EXPLICIT], VERIFICATION: [IMPLICIT]}, reject=True)
    assert scu.echo(node, "DICOMAI").sentence == (
        "PACS1 rejected the association because it does not know DICOMAI. Add that AE title and "
        "our address there."
    )
    (outcome,) = scu.store_objects(node, "DICOMAI", [ct], lambda _: None)
    assert (outcome.kind, outcome.status) == ("transient", None)  # the object was not refused


def test_a_node_without_an_address_is_a_matter_of_configuration(ct: Path) -> None:
    node = Node(name="CT1", ae_title="CT1")
    with pytest.raises(ConfigError, match="Node CT1 has no host and port"):
        scu.store_objects(node, "DICOMAI", [ct], lambda _: None)


def test_the_identity_of_a_study_is_asked_for(faulty_peer: Peer) -> None:
    found = {"StudyInstanceUID": STUDY, "PatientID": "P 1", "AccessionNumber": "A1"}
    node = faulty_peer(finds=[found, {**found, "StudyInstanceUID": "1.2.4", "PatientID": "P2"}])
    assert find_study_identity(node, "DICOMAI", STUDY) == StudyIdentity(
        patient_id="P 1", issuer_of_patient_id="", accession_number="A1"
    )


@pytest.mark.parametrize(
    ("charset", "said", "name"),
    [
        ("ISO_IR 192", "Müller^Änne", "Müller^Änne"),
        ("", "Müller^Änne", ""),  # nothing says how its bytes are to be read
        ("", "Muller^Anne^ ", "Muller^Anne"),
    ],
)
def test_the_name_of_a_patient_is_read_and_not_guessed(
    faulty_peer: Peer, charset: str, said: str, name: str
) -> None:
    found = {
        "StudyInstanceUID": STUDY,
        "SpecificCharacterSet": charset,
        "PatientName": said,
        "PatientBirthDate": "1960",
        "PatientSex": "F",
    }
    there = find_study_identity(faulty_peer(finds=[found]), "DICOMAI", STUDY)
    assert there is not None
    assert (there.patient_name, there.birth_date, there.sex) == (name, "", "F")


@pytest.mark.parametrize(
    ("charset", "said", "told"),
    [
        ("ISO_IR 192", "Ä 1", "Ä 1"),
        ("", "Ä 1", "Ф 1"),  # the peer writes Latin-1, and the node is one that writes Cyrillic
        ("", ["A", "1"], "A\\1"),
    ],
)
def test_an_id_is_read_in_its_character_set(
    faulty_peer: Peer, charset: str, said: str | list[str], told: str
) -> None:
    found = {
        "StudyInstanceUID": STUDY,
        "SpecificCharacterSet": charset,
        "PatientID": said,
        "IssuerOfPatientID": said,
        "AccessionNumber": said,
    }
    node = replace(faulty_peer(finds=[found]), charset_default="ISO_IR 144")
    assert find_study_identity(node, "DICOMAI", STUDY) == StudyIdentity(
        patient_id=told,
        issuer_of_patient_id="" if "\\" in told else told,
        accession_number=told,
    )


def test_an_answer_that_names_no_study_is_about_the_one_that_was_asked_for(
    faulty_peer: Peer,
) -> None:
    there = find_study_identity(faulty_peer(finds=[{"PatientID": "P2"}]), "DICOMAI", STUDY)
    assert there is not None
    assert there.patient_id == "P2"


@pytest.mark.parametrize("before", [[], [{"StudyInstanceUID": STUDY, "PatientID": "P2"}]])
def test_an_answer_that_cannot_be_read_is_no_study_that_a_peer_lacks(
    faulty_peer: Peer, before: list[object]
) -> None:
    node = faulty_peer(finds=[*before, None])
    with pytest.raises(RefusedError, match=r"with something that can't be read\."):
        find_study_identity(node, "DICOMAI", STUDY)


def test_a_study_that_a_peer_lacks_has_no_identity_there(faulty_peer: Peer) -> None:
    assert find_study_identity(faulty_peer(finds=[]), "DICOMAI", STUDY) is None


@pytest.mark.parametrize(
    ("finds", "error"),
    [
        ([0xA700], PutOff),
        ([0xA900], RefusedError),
        (
            [
                {"StudyInstanceUID": STUDY, "PatientID": "P1"},
                {"StudyInstanceUID": STUDY, "PatientID": "P2"},
            ],
            RefusedError,
        ),
    ],
)
def test_an_identity_that_is_not_certain_is_an_error(
    faulty_peer: Peer, finds: list[object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        find_study_identity(faulty_peer(finds=finds), "DICOMAI", STUDY)


def test_a_peer_without_find_says_what_to_do(faulty_peer: Peer) -> None:
    node = faulty_peer(takes={CT: [EXPLICIT]})
    with pytest.raises(RefusedError, match="answers_find = false"):
        find_study_identity(node, "DICOMAI", STUDY)


def test_small_objects_do_not_wait_for_the_kernel(
    faulty_peer: Peer, ct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    prepared = calling._prepare

    def watched(wire: socket.socket) -> None:
        prepared(wire)
        seen.append(wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(calling, "_prepare", watched)
    scu.store_objects(faulty_peer(takes={CT: [EXPLICIT]}), "DICOMAI", [ct], lambda _: None)
    assert seen == [1]
