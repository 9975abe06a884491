"""What a peer may do with fragments, PDUs and messages, and what it may not (PS3.7 6.3, PS3.8)."""

from __future__ import annotations

import random
import socket
import ssl
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context

from dicomai.net.c_store import StoreRequest, command_elements, p_data, response
from dicomai.net.pdu_stream import TICK_S
from tests.conftest import Authority

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
VERIFICATION = "1.2.840.10008.1.1"
RELEASE = bytes.fromhex("05000000000400000000")
COMMAND, LAST = 1, 2
Receiver = Any  # of conftest.py, which tests can't import
MakeReceiver = Callable[..., Receiver]
Scu = Any


def pdv(data: bytes, control: int, context_id: int = 1) -> bytes:
    return struct.pack(">LBB", len(data) + 2, context_id, control) + data


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxL", kind, len(body)) + body


def whole(command: bytes, data_set: bytes = b"", context_id: int = 1) -> bytes:
    """A message in two PDUs, or in one."""
    message = pdu(4, pdv(command, COMMAND | LAST, context_id))
    return message + (pdu(4, pdv(data_set, LAST, context_id)) if data_set else b"")


def element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def command_set(*elements: tuple[int, bytes]) -> bytes:
    body = b"".join(element(number, value) for number, value in elements)
    return element(0, struct.pack("<L", len(body))) + body


def store_rq(
    sop_instance: str = "1.2.3.4", *, sop_class: str = CT, data_set_type: int = 1
) -> bytes:
    uid = sop_instance.encode() + b"\0" * (len(sop_instance) % 2)
    return command_set(
        (0x0002, sop_class.encode() + b"\0" * (len(sop_class) % 2)),
        (0x0100, b"\1\0"),
        (0x0110, b"\7\0"),
        (0x0700, b"\0\0"),
        (0x0800, struct.pack("<H", data_set_type)),
        (0x1000, uid),
    )


ECHO_RQ = command_set(
    (0x0002, VERIFICATION.encode() + b"\0"),
    (0x0100, b"\x30\0"),
    (0x0110, b"\x09\0"),
    (0x0800, b"\1\1"),
)


@dataclass(frozen=True)
class Peer:
    """A connection with an association, on which anything may be sent."""

    wire: socket.socket

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.wire.sendall(piece)

    def hear(self) -> tuple[int, bytes]:
        """The next PDU; type 0 at the end of the connection."""
        head = self._exactly(6)
        if not head:
            return 0, b""
        kind, length = struct.unpack(">BxL", head)
        return kind, self._exactly(length)

    def status(self) -> int:
        """The status of the next response."""
        kind, body = self.hear()
        assert kind == 4, (kind, body)
        elements = command_elements(body[6:])
        assert elements is not None
        return int.from_bytes(elements[0x0900], "little")

    def is_aborted_by_provider(self) -> bool:
        kind, body = self.hear()
        return kind == 7 and body[2] == 2 and self.hear()[0] == 0

    def _exactly(self, size: int) -> bytes:
        read = b""
        while len(read) < size:
            try:
                piece = self.wire.recv(size - len(read))
            except ConnectionResetError:
                return b""
            if not piece:
                return b""
            read += piece
        return read


@contextmanager
def associated(
    receiver: Receiver,
    *,
    max_pdu_bytes: int = 0,
    over: Callable[[], socket.socket] | None = None,
    ids: tuple[int, int] = (1, 3),
) -> Iterator[Peer]:
    """CT in context 1, Verification in 3."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = "CT1", "DICOMAI"
    longest, ours = MaximumLengthNotification(), ImplementationClassUIDNotification()
    longest.maximum_length_received = max_pdu_bytes
    ours.implementation_class_uid = "1.2.3"
    request.user_information = [longest, ours]
    contexts = [build_context(CT, EXPLICIT), build_context(VERIFICATION, IMPLICIT)]
    # Its own, for pynetdicom takes odd ones only.
    contexts[0]._context_id, contexts[1]._context_id = ids
    request.presentation_context_definition_list = contexts
    with over() if over else socket.create_connection(("127.0.0.1", receiver.port), 20) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.sendall(A_ASSOCIATE_RQ(request).encode())
        peer = Peer(wire)
        assert peer.hear()[0] == 2
        yield peer


def in_pieces(data: bytes, sizes: random.Random, longest: int) -> Iterator[bytes]:
    while data:
        size = sizes.randint(1, longest)
        yield data[:size]
        data = data[size:]


def fragmented(message: Sequence[tuple[bytes, int]], sizes: random.Random, longest: int) -> bytes:
    """A message as PDVs of any size, any number of them in a PDU, empty ones among them."""
    pdvs = []
    for part, kind in message:
        pieces = [*in_pieces(part, sizes, longest), b""]
        pdvs += [pdv(piece, kind) for piece in pieces[:-1]]
        if sizes.random() < 0.5 and pdvs:  # the last one is empty, or the last bytes are in it
            pdvs.append(pdv(b"", kind | LAST))
        else:
            pdvs[-1] = pdv(pieces[-2], kind | LAST)
    pdus = b""
    while pdvs:
        count = sizes.randint(1, 4)
        pdus += pdu(4, b"".join(pdvs[:count]))
        del pdvs[:count]
    return pdus


def test_an_object_is_the_same_however_it_is_cut(receiver: Receiver, scu: Scu) -> None:
    sizes = random.Random(1)
    sent = []
    with associated(receiver) as peer:
        for number in range(30):
            longest = (3, 50, 5000)[number % 3]
            uid = f"1.2.9.{number}"
            tail = sizes.randbytes(sizes.randint(0, 10 * longest))
            pixels = struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OB", 0, len(tail)) + tail
            data_set = scu.tiny(sop_instance=uid.encode(), tail=pixels)
            message = fragmented([(store_rq(uid), COMMAND), (data_set, 0)], sizes, longest)
            peer.send(*in_pieces(message, sizes, longest * 20))
            assert peer.status() == 0
            sent.append(data_set)
        peer.send(RELEASE)
        assert peer.hear()[0] == 6
    assert receiver.data_sets() == sent


def test_empty_fragments_before_an_object_open_nothing(receiver: Receiver, scu: Scu) -> None:
    descriptors = Path(f"/proc/{receiver.process.pid}/fd")
    with associated(receiver) as peer:
        peer.send(whole(store_rq(), scu.tiny()))
        assert peer.status() == 0
        before = len(list(descriptors.iterdir()))
        peer.send(pdu(4, pdv(store_rq(), COMMAND | LAST)), pdu(4, pdv(b"", 0)) * 20)
        peer.send(pdu(4, pdv(scu.tiny(), LAST)))
        assert peer.status() == 0
        # Each would else hold back what is ingested, until the association ends.
        assert not list(receiver.spool.rglob("*.part"))
        assert len(list(descriptors.iterdir())) == before
        peer.send(pdu(4, pdv(store_rq(), COMMAND | LAST)), pdu(4, pdv(b"", LAST)))
        assert peer.status() == 0xC000
    assert receiver.data_sets() == [scu.tiny()] * 2


def test_a_head_that_comes_late_is_checked_all_the_same(receiver: Receiver, scu: Scu) -> None:
    private = scu.element(0x0009, 0x0010, "LO", b"SOMEONE")
    private += struct.pack("<HH2sHL", 0x0009, 0x1001, b"OB", 0, 3_000_000) + bytes(3_000_000)
    first, rest = scu.tiny()[:50], scu.tiny()[50:]
    late = first + private + rest
    with associated(receiver) as peer:
        for uid, status in (("1.2.3.4", 0), ("1.2.3.5", 0xA900)):
            peer.send(pdu(4, pdv(store_rq(uid), COMMAND | LAST)))
            peer.send(
                *(pdu(4, pdv(late[at : at + 60_000], 0)) for at in range(0, len(late), 60_000))
            )
            peer.send(pdu(4, pdv(b"", LAST)))
            assert peer.status() == status
        peer.send(whole(store_rq(), scu.tiny(study=b"")), whole(store_rq(), scu.tiny()))
        assert [peer.status(), peer.status()] == [0xC000, 0]
    assert receiver.data_sets() == [late, scu.tiny()]
    assert not list(receiver.spool.rglob("*.part"))


def test_other_messages_are_answered_between_objects(receiver: Receiver, scu: Scu) -> None:
    half = len(ECHO_RQ) // 2
    in_two = pdu(4, pdv(ECHO_RQ[:half], COMMAND, 3) + pdv(ECHO_RQ[half:], COMMAND | LAST, 3))
    with associated(receiver) as peer:
        # All of it before any answer is read: the answers come in the same order.
        peer.send(whole(store_rq(), scu.tiny()), in_two, whole(store_rq(), scu.tiny()), RELEASE)
        answered = []
        for _ in range(3):
            _, body = peer.hear()
            elements = command_elements(body[6:])
            assert elements is not None
            answered.append((body[4], elements[0x0100], elements[0x0120], elements[0x0900]))
        assert peer.hear()[0] == 6
    stored = (1, b"\x01\x80", b"\7\0", b"\0\0")
    assert answered == [stored, (3, b"\x30\x80", b"\x09\0", b"\0\0"), stored]


def test_messages_that_come_together_are_all_answered(receiver: Receiver) -> None:
    with associated(receiver) as peer:
        peer.send(pdu(4, pdv(ECHO_RQ, COMMAND | LAST, 3) * 3))
        assert [peer.status() for _ in range(3)] == [0] * 3


def test_contexts_with_even_ids_are_served(receiver: Receiver, scu: Scu) -> None:
    with associated(receiver, ids=(2, 4)) as peer:  # PS3.8 9.3.2.2 has odd ones
        peer.send(whole(store_rq(), scu.tiny(), 2), whole(ECHO_RQ, context_id=4))
        assert [peer.status(), peer.status()] == [0, 0]
        peer.send(RELEASE)
        assert peer.hear()[0] == 6


HALF = pdu(4, pdv(store_rq(), COMMAND | LAST)) + pdu(4, pdv(b"\x08\0\x16\0", 0))


BREACHES = {
    "where a data set was to come": HALF + pdu(4, pdv(store_rq(), COMMAND | LAST)),
    "A message began before": HALF + pdu(4, pdv(ECHO_RQ, COMMAND | LAST, 3)),
    "before the one before it was whole": HALF + pdu(4, pdv(b"\0\0", 0, 3)),
    "came without a command": pdu(4, pdv(b"\x08\0\x16\0", 0)),
    "command set can't be read": pdu(4, pdv(b"\x08\0\x16\0\xff\xff\xff\xff", COMMAND | LAST)),
    "more than 65536 bytes": pdu(4, pdv(bytes(40_000), COMMAND)) * 2,
    "holds nothing": pdu(4, b""),
    "A PDV goes beyond its PDU": pdu(4, b"\0\0\0"),
    "goes beyond its": pdu(4, struct.pack(">LBB", 100, 1, 3) + bytes(20)),
    "beyond its PDU": pdu(4, struct.pack(">LBB", 1, 1, 3)),
    "unknown type 0x09": pdu(9, b"\0\0"),
    "fragments of less than 64 bytes": HALF + pdu(4, pdv(b"", 0) * 1100),
}


def test_what_breaks_the_protocol_is_aborted_and_harms_no_neighbour(
    receiver: Receiver, scu: Scu
) -> None:
    for number, (reason, said) in enumerate(BREACHES.items()):
        with associated(receiver) as neighbour:
            neighbour.send(HALF)
            with associated(receiver) as peer:
                peer.send(whole(store_rq(), scu.tiny()))
                assert peer.status() == 0
                peer.send(said)
                assert peer.is_aborted_by_provider(), reason
            neighbour.send(pdu(4, pdv(scu.tiny()[4:], LAST)))
            assert neighbour.status() == 0
        scu.eventually(lambda ended=2 * number + 2: len(receiver.lines()) == ended)
        (line,) = [line for line in receiver.lines()[-2:] if "reason" in line]
        assert line["ended"] == "lost"
        assert reason in str(line["reason"])
    assert receiver.data_sets() == [scu.tiny()] * 2 * len(BREACHES)
    assert not list(receiver.spool.rglob("*.part"))


def test_an_end_within_an_object_keeps_nothing_of_it(receiver: Receiver, scu: Scu) -> None:
    abort = bytes.fromhex("07000000000400000000")
    for number, (ending, how) in enumerate(
        {RELEASE: "aborted", abort: "aborted", b"": "lost"}.items()
    ):
        with associated(receiver) as peer:
            peer.send(whole(store_rq(), scu.tiny()))
            assert peer.status() == 0
            peer.send(HALF)
            scu.eventually(lambda: list(receiver.spool.rglob("*.part")))
            peer.send(ending)
            if not ending:
                peer.wire.shutdown(socket.SHUT_RDWR)
            scu.eventually(lambda ended=number + 1: len(receiver.lines()) == ended)
            assert receiver.lines()[-1]["ended"] == how
        scu.eventually(lambda: not list(receiver.spool.rglob("*.part")))
    assert receiver.data_sets() == [scu.tiny()] * 3


def test_an_answer_keeps_to_what_the_peer_takes(receiver: Receiver, scu: Scu) -> None:
    with associated(receiver, max_pdu_bytes=20) as peer:
        peer.send(whole(store_rq(), scu.tiny()))
        gathered, control = b"", 0
        while not control & LAST:
            kind, body = peer.hear()
            assert (kind, body[4], len(body) <= 20) == (4, 1, True)
            control = body[5]
            gathered += body[6:]
    elements = command_elements(gathered)
    assert elements is not None
    assert elements[0x0900] == b"\0\0"


def test_a_peer_may_take_its_time_to_read_answers_over_tls(
    make_receiver: MakeReceiver, authority: Authority, free_ports: Callable[[int], list[int]]
) -> None:
    port = free_ports(2)[1]
    certificate, key = authority.issue("receiver")
    files = {"certificate": str(certificate), "key": str(key)}
    receiver = make_receiver(tls={"port": port, "files": files})
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.check_hostname = False

    def over() -> socket.socket:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
        plain.connect(("127.0.0.1", port))
        plain.settimeout(20)
        return context.wrap_socket(plain)

    # An answer has the UID of its request, so these are more than any way there and back takes.
    request, count = whole(store_rq("1" * 60_000, data_set_type=0x0101)), 120
    left, answered = memoryview(request * count), 0
    with associated(receiver, over=over) as peer:
        while answered < count:
            # Until nothing goes any more, for longer than a tick of the receiver's.
            peer.wire.settimeout(2 * TICK_S)
            with suppress(TimeoutError):
                while left:
                    left = left[peer.wire.send(left[: 2**14]) :]
            peer.wire.settimeout(20)
            while answered < count - -(-len(left) // len(request)):
                assert peer.status() == 0xC000
                answered += 1


def test_a_request_without_a_data_set_is_no_object(receiver: Receiver, scu: Scu) -> None:
    with associated(receiver) as peer:
        peer.send(whole(store_rq(data_set_type=0x0101)), whole(store_rq(), scu.tiny()))
        assert [peer.status(), peer.status()] == [0xC000, 0]
    assert receiver.data_sets() == [scu.tiny()]


def test_who_may_only_echo_can_store_nothing(make_receiver: MakeReceiver) -> None:
    receiver = make_receiver(nodes=[{"name": "ct1", "ae_title": "CT1", "may": ["echo"]}])
    with associated(receiver) as peer:
        # Implicit little endian, as context 3 has it.
        uids = ((0x0008, 0x16, VERIFICATION), (0x0008, 0x18, "1.2.3.4"))
        uids += ((0x0020, 0x0D, "1.2.3.1"), (0x0020, 0x0E, "1.2.3.2"))
        implicit = b"".join(
            struct.pack("<HHL", group, number, len(uid) + len(uid) % 2)
            + uid.encode()
            + b"\0" * (len(uid) % 2)
            for group, number, uid in uids
        )
        peer.send(whole(store_rq(sop_class=VERIFICATION), implicit, 3))
        assert peer.status() == 0x0122  # no context of a storage class
        peer.send(whole(ECHO_RQ, context_id=3))
        assert peer.status() == 0
    assert receiver.data_sets() == []


def test_a_response_reads_back_with_pynetdicom() -> None:
    from io import BytesIO

    from pynetdicom.dimse_messages import C_STORE_RSP
    from pynetdicom.dsutils import decode

    request = StoreRequest(message_id=513, sop_class_uid=CT.encode(), sop_instance_uid=b"1.2.3")
    encoded = response(request, 0xA900, "No such\\thing, " * 10)
    message = C_STORE_RSP()
    message.command_set = decode(BytesIO(encoded), True, True)
    read = message.message_to_primitive()
    assert (read.MessageIDBeingRespondedTo, read.Status) == (513, 0xA900)
    assert (read.AffectedSOPClassUID, read.AffectedSOPInstanceUID) == (CT, "1.2.3")
    assert message.command_set.CommandGroupLength == len(encoded) - 12
    assert len(message.command_set.ErrorComment) <= 64
    assert "\\" not in message.command_set.ErrorComment
    assert p_data(encoded, 5, 0) == pdu(4, pdv(encoded, COMMAND | LAST, 5))


def test_an_object_of_any_size_takes_little_memory(
    receiver: Receiver, scu: Scu, tmp_path: Path
) -> None:
    frames = 2_000  # benchmarks/receive.py sends 2 GB
    pixels = struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OW", 0, frames * 2**16)
    with associated(receiver) as peer:
        peer.send(whole(store_rq(), scu.tiny()))
        assert peer.status() == 0
        before = peak_bytes(receiver)
        peer.send(pdu(4, pdv(store_rq(), COMMAND | LAST)), pdu(4, pdv(scu.tiny() + pixels, 0)))
        frame = pdu(4, pdv(bytes(2**16), 0))
        for _ in range(frames):
            peer.send(frame)
        peer.send(pdu(4, pdv(b"", LAST)))
        assert peer.status() == 0
    assert peak_bytes(receiver) < before + 4_000_000
    assert max(path.stat().st_size for path in receiver.spool.rglob("*.dcm")) > frames * 2**16


def peak_bytes(receiver: Receiver) -> int:
    status = Path(f"/proc/{receiver.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
