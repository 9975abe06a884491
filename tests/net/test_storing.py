"""Objects on their way out: the bytes on the wire, and whatever a peer may answer."""

from __future__ import annotations

import os
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA

from dicomai.net.storing import BrokenOff, Empty, NoAnswer, Request, Response, Storer, Unreadable

CT = "1.2.840.10008.5.1.4.1.1.2"
SOP = "1.2.3.4.5"
ABORT = bytes.fromhex("07000000000400000000")
RELEASE = bytes.fromhex("05000000000400000000")


def command(status: int = 0, message_id: int = 1, field: int = 0x8001) -> bytes:
    """Return the command set of a response, written from the tables of PS3.7 9.3.1 and annex E."""
    elements = [(0x0100, field), (0x0120, message_id), (0x0800, 0x0101), (0x0900, status)]
    body = b"".join(struct.pack("<HHLH", 0, number, 2, value) for number, value in elements)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def p_data(piece: bytes, control: int = 3, context: int = 1) -> bytes:
    """Return a P-DATA-TF with one PDV (PS3.8 9.3.5)."""
    return struct.pack(">BBLLBB", 4, 0, len(piece) + 6, len(piece) + 2, context, control) + piece


@contextmanager
def peer(
    answers: list[bytes | None], *, pieces: int = 0, begins: Callable[[], None] = lambda: None
) -> Iterator[tuple[socket.socket, list[P_DATA_TF]]]:
    """Give a wire, and the PDUs that came over it; each object gets the next of the answers.

    An answer may go in pieces; none: the peer hangs up. `begins` is called when an object does.
    """
    ours, theirs = socket.socketpair()
    came: list[P_DATA_TF] = []

    def read(count: int) -> bytes:
        return theirs.recv(count, socket.MSG_WAITALL)

    def object_is_whole() -> bool:
        theirs.recv(1, socket.MSG_PEEK)
        begins()
        while head := read(6):
            pdu = P_DATA_TF()
            pdu.decode(head + read(struct.unpack(">xxL", head)[0]))
            came.append(pdu)
            if pdu.presentation_data_value_items[-1].message_control_header_byte == "00000010":
                return True
        return False

    def play() -> None:
        with theirs, suppress(OSError):  # we hung up
            for answer in answers:
                if not object_is_whole() or answer is None:
                    return
                size = pieces or len(answer) or 1
                for at in range(0, len(answer), size):
                    theirs.sendall(answer[at : at + size])
            read(1)

    playing = threading.Thread(target=play)
    playing.start()
    ours.settimeout(10)
    try:
        yield ours, came
    finally:
        ours.close()
        playing.join()


def file_of(folder: Path, size: int) -> Request:
    """Write a file whose data set has so many bytes, behind something else."""
    path = folder / f"{size}.dcm"
    path.write_bytes(b"head" + (bytes(range(251)) * (size // 251 + 1))[:size])
    return Request(path=path, data_set_at=4, sop_class_uid=CT, sop_instance_uid=SOP, context_id=1)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.one_of(st.integers(1, 300), st.integers(1, 60_000)),
    max_pdu=st.one_of(st.just(0), st.integers(8, 300), st.integers(300, 70_000)),
)
def test_pynetdicom_reads_what_is_sent_in_pdus_no_longer_than_it_takes(
    size: int, max_pdu: int, tmp_path: Path
) -> None:
    request = file_of(tmp_path, size)
    with peer([p_data(command(0xB007))]) as (wire, came):
        said = Storer(wire, max_pdu, 5).store(request)
    assert said == Response(status=0xB007, comment="")
    message = C_STORE_RQ()
    for number, pdu in enumerate(came):
        primitive = pdu.to_primitive()
        assert isinstance(primitive, P_DATA)
        assert pdu.pdu_length <= (max_pdu or 2**18)
        assert all(len(item[1]) % 2 == 1 for item in primitive.presentation_data_value_list) or (
            number == len(came) - 1 or max_pdu % 2
        )  # even fragments, and the control header
        whole = message.decode_msg(primitive)
        assert whole == (number == len(came) - 1)
    assert message.data_set.getvalue() == request.path.read_bytes()[4:]
    told = message.message_to_primitive()
    assert (told.AffectedSOPClassUID, told.AffectedSOPInstanceUID) == (CT, SOP)
    assert (told.MessageID, told.Priority) == (1, 0)


@pytest.mark.parametrize("pieces", [0, 1])
def test_an_answer_may_come_in_any_number_of_fragments(tmp_path: Path, pieces: int) -> None:
    whole = command(0xA700)
    pdus = p_data(whole[:7], control=1) + p_data(whole[7:30], control=1) + p_data(whole[30:])
    whole = command(0xB000, message_id=2)
    pdvs = b"".join(
        struct.pack(">LBB", len(piece) + 2, 1, control) + piece
        for piece, control in ((whole[:9], 1), (whole[9:], 3))
    )
    one_pdu = struct.pack(">BBL", 4, 0, len(pdvs)) + pdvs
    with peer([pdus, one_pdu], pieces=pieces) as (wire, _):
        storer = Storer(wire, 0, 5)
        assert storer.store(file_of(tmp_path, 100)).status == 0xA700
        assert storer.store(file_of(tmp_path, 100)).status == 0xB000


def test_the_comment_of_a_refusal_is_kept(tmp_path: Path) -> None:
    comment = struct.pack("<HHL", 0, 0x0902, 10) + b"Disk full "
    body = command(0xA700)[12:] + comment
    answer = struct.pack("<HHLL", 0, 0, 4, len(body)) + body
    with peer([p_data(answer)]) as (wire, _):
        said = Storer(wire, 0, 5).store(file_of(tmp_path, 10))
    assert said == Response(status=0xA700, comment="Disk full")


@pytest.mark.parametrize(
    ("answer", "handed_back"),
    [
        (ABORT, ABORT),
        (RELEASE, RELEASE),
        (p_data(command(message_id=2)), None),
        (p_data(command(field=0x8030)), None),
        (p_data(command(), context=3), None),
        (p_data(command(), control=2), None),
        (p_data(command()[:-10]), None),
        (p_data(b""), None),
        (struct.pack(">BBL", 4, 0, 2) + b"\0\0", None),
        (struct.pack(">BBL", 4, 0, 6) + struct.pack(">LBB", 99, 1, 3), None),
        (struct.pack(">BBL", 4, 0, 2**32 - 1), None),
        (struct.pack(">BBL", 9, 0, 4) + bytes(4), None),
        (None, b""),
    ],
)
def test_what_is_no_answer_ends_it_and_is_left_to_pynetdicom(
    tmp_path: Path, answer: bytes | None, handed_back: bytes | None
) -> None:
    with peer([answer]) as (wire, _):
        storer = Storer(wire, 0, 5)
        with pytest.raises(NoAnswer):
            storer.store(file_of(tmp_path, 100))
        with pytest.raises(NoAnswer):  # nothing more is sent
            storer.store(file_of(tmp_path, 100))
    if handed_back is not None:
        assert storer.unread == handed_back


def test_an_abort_right_after_an_answer_is_seen_with_the_next_object(tmp_path: Path) -> None:
    with peer([p_data(command()) + ABORT]) as (wire, _):
        storer = Storer(wire, 0, 5)
        assert storer.store(file_of(tmp_path, 100)).status == 0
        with pytest.raises(NoAnswer):
            storer.store(file_of(tmp_path, 100))
    assert storer.unread == ABORT


def test_a_peer_that_says_nothing_is_waited_for_no_longer_than_it_may(tmp_path: Path) -> None:
    with peer([b""]) as (wire, _):
        wire.settimeout(0.05)
        with pytest.raises(NoAnswer):
            Storer(wire, 0, 0.05).store(file_of(tmp_path, 100))


def test_a_peer_that_says_a_byte_now_and_then_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with peer([p_data(command())], pieces=1) as (wire, _), pytest.raises(NoAnswer):
        Storer(wire, 0, 0.0).store(file_of(tmp_path, 100))


def test_a_file_that_is_gone_costs_only_itself(tmp_path: Path) -> None:
    gone = file_of(tmp_path, 100)
    gone.path.unlink()
    empty = file_of(tmp_path, 0)
    with peer([p_data(command(message_id=3))]) as (wire, _):
        storer = Storer(wire, 0, 5)
        with pytest.raises(Unreadable, match="No such file"):
            storer.store(gone)
        with pytest.raises(Empty):
            storer.store(empty)
        assert storer.store(file_of(tmp_path, 100)).status == 0


def test_a_file_that_becomes_shorter_on_the_way_breaks_off(tmp_path: Path) -> None:
    request = file_of(tmp_path, 5 * 2**20)
    with (
        peer([b""], begins=lambda: os.truncate(request.path, 100)) as (wire, _),
        pytest.raises(BrokenOff, match="shorter"),
    ):
        Storer(wire, 0, 5).store(request)


def test_memory_does_not_grow_with_the_object(tmp_path: Path) -> None:
    size, pdu = 400 * 2**20, 2**17
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(size + 4)
    request = Request(
        path=path, data_set_at=4, sop_class_uid=CT, sop_instance_uid=SOP, context_id=1
    )
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    resident: list[int] = []

    def drain() -> None:
        room = bytearray(2**20)
        left = size + 12 * (size // (pdu - 6) + 1)
        while left > 0:
            left -= theirs.recv_into(room)
            pages = Path("/proc/self/statm").read_text().split()[1]
            resident.append(int(pages) * resource.getpagesize())
        theirs.sendall(p_data(command()))

    draining = threading.Thread(target=drain)
    draining.start()
    assert Storer(ours, pdu, 20).store(request).status == 0
    draining.join()
    ours.close()
    theirs.close()
    assert max(resident) - resident[0] < 16 * 2**20
