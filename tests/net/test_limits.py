"""What one peer may take: bytes and time, of a real receiver over real sockets."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomai.net import pdu_stream
from dicomai.net.association_request import Unshapely, check
from dicomai.net.limits import Limits, Pace
from dicomai.net.pdu_stream import PduStream

Receiver = Any  # of conftest.py, which tests can't import
MakeReceiver = Callable[..., Receiver]
Scu = Any

# A-ABORT by the provider, for an invalid PDU parameter (PS3.8 9.3.8).
INVALID_PARAMETER = bytes.fromhex("07000000000400000206")
IMPLICIT = "1.2.840.10008.1.2"


def resident_kib(receiver: Receiver) -> int:
    status = Path(f"/proc/{receiver.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def connected(receiver: Receiver) -> socket.socket:
    return socket.create_connection(("127.0.0.1", receiver.port), 20)


def reasons(receiver: Receiver) -> list[str]:
    return [str(line["reason"]) for line in receiver.lines() if "reason" in line]


def test_a_pdu_of_gigabytes_is_aborted_unread(receiver: Receiver, scu: Scu) -> None:
    for length in (2**20 + 1, 2**32 - 1):
        before = resident_kib(receiver)
        with connected(receiver) as wire:
            wire.sendall(struct.pack(">BxL", 1, length))
            assert wire.recv(100) == INVALID_PARAMETER
        with scu.calling(receiver.port) as association:
            scu.wire_of(association).sendall(struct.pack(">BxL", 4, length))
            scu.eventually(lambda: association.is_aborted)
        said = f"A PDU says to have {length} bytes"
        scu.eventually(lambda said=said: sum(said in each for each in reasons(receiver)) == 2)
        assert resident_kib(receiver) < before + 20 * 1024


def test_who_never_asks_for_an_association_is_hung_up_on(
    make_receiver: MakeReceiver, scu: Scu
) -> None:
    receiver = make_receiver(limits={"request_s": 2.0})
    with connected(receiver) as silent, connected(receiver) as slow:
        slow.sendall(struct.pack(">BxL", 1, 1000) + bytes(10))
        with scu.calling(receiver.port) as other:
            assert other.is_established
        for wire in (silent, slow):
            assert wire.recv(1) == b""
    said = "No association request came within 2 s (ARTIM)."
    scu.eventually(lambda: reasons(receiver) == [said, said])


def test_a_port_scan_is_no_news(receiver: Receiver, scu: Scu) -> None:
    connected(receiver).close()
    with scu.calling(receiver.port):
        pass
    (line,) = scu.eventually(receiver.lines)
    assert line["event"] == "association ended"


def test_who_falls_silent_is_aborted(make_receiver: MakeReceiver, scu: Scu) -> None:
    receiver = make_receiver(limits={"silence_s": 1.0})
    with scu.calling(receiver.port) as association:
        scu.eventually(lambda: association.is_aborted)
    (line,) = scu.eventually(receiver.lines)
    assert line["reason"] == "Nothing came for 1 s."


def test_the_time_that_we_took_ourselves_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    at = 0.0
    monkeypatch.setattr(pdu_stream, "TICK_S", 0.01)
    monkeypatch.setattr(pdu_stream, "time", SimpleNamespace(monotonic=lambda: at))
    here, peer = socket.socketpair()
    with here, peer:

        def tick() -> None:  # the peer was busy for a moment too
            peer.sendall(struct.pack(">BxL", 5, 4))

        stream = PduStream(here, Limits(silence_s=60.0), b"", tick=tick)
        peer.sendall(struct.pack(">BxL", 4, 0))
        stream.head()
        at = 300.0  # its object was synced for so long
        assert stream.head() == (5, 4)


def test_who_sends_a_byte_now_and_then_is_aborted(make_receiver: MakeReceiver, scu: Scu) -> None:
    receiver = make_receiver(limits={"silence_s": 1.0})
    done = threading.Event()
    with scu.calling(receiver.port) as association:
        wire = scu.wire_of(association)
        wire.sendall(struct.pack(">BxLLBB", 4, 1006, 1002, 1, 3))

        def trickle() -> None:
            while not done.wait(0.1):
                wire.sendall(b"\0")

        sender = threading.Thread(target=trickle)
        sender.start()
        try:
            scu.eventually(lambda: association.is_aborted)
        finally:
            done.set()
            sender.join()
    (line,) = scu.eventually(receiver.lines)
    assert "slower than 1000 bytes per second" in str(line["reason"])


def test_an_object_that_is_too_large_is_refused_and_the_next_is_taken(
    make_receiver: MakeReceiver, scu: Scu
) -> None:
    receiver = make_receiver(limits={"object_bytes": 100_000})
    fits = scu.tiny(tail=scu.element(8, 0x103E, "LO", b"fits"))
    with scu.calling(receiver.port) as association:
        assert scu.send(association, scu.tiny(tail=bytes(100_000))) == 0xA700
        assert scu.send(association, fits) == 0
    assert receiver.data_sets() == [fits]
    assert not list(receiver.spool.rglob(".0*.part"))
    (line,) = scu.eventually(lambda: [each for each in receiver.lines() if "first_refusal" in each])
    assert "100000" in str(line["first_refusal"])


def test_a_node_has_places_of_its_own(make_receiver: MakeReceiver, scu: Scu) -> None:
    nodes = [
        {"name": "ct1", "ae_title": "CT1", "max_associations": 1},
        {"name": "mr1", "ae_title": "MR1"},
    ]
    receiver = make_receiver(nodes=nodes, max_associations=2)

    def called(title: str) -> Any:
        return scu.calling(receiver.port, calling_ae=title)

    with called("CT1") as first, called("CT1") as second, called("MR1") as third:
        assert first.is_established
        said = second.acceptor.primitive
        # Rejected for now, by the provider: local limit exceeded (PS3.8 9.3.4).
        assert (said.result, said.result_source, said.diagnostic) == (2, 3, 2)
        assert third.is_established
        with called("MR1") as fourth:
            assert fourth.acceptor.primitive.diagnostic == 2
    assert ["its max_associations" in each for each in reasons(receiver)] == [True, False]


def test_a_request_that_would_take_hours_is_not_read(receiver: Receiver, scu: Scu) -> None:
    syntaxes = b"".join(b"\x40\0\0\x05%05d" % number for number in range(7000))
    context = b"\1\0\0\0" + b"\x30\0\0\x05" + b"1.2.3" + syntaxes
    item = b"\x20\0" + (len(context) % 65536).to_bytes(2, "big") + context
    body = b"\0\1\0\0" + b"DICOMAI".ljust(16) + b"CT1".ljust(16) + bytes(32) + item
    with connected(receiver) as wire:
        wire.sendall(struct.pack(">BxL", 1, len(body)) + body)
        assert wire.recv(100) == INVALID_PARAMETER
    assert "more than 257 items" in scu.eventually(lambda: reasons(receiver))[0]


def test_what_only_the_other_side_may_send_is_not_read(receiver: Receiver, scu: Scu) -> None:
    acceptance = struct.pack(">BxL", 2, 2**20) + bytes(2**20)
    with connected(receiver) as wire:
        wire.sendall(acceptance[:6])
        # A-ABORT by the provider, unexpected PDU.
        assert wire.recv(100) == bytes.fromhex("07000000000400000202")
    with scu.calling(receiver.port) as association:
        scu.wire_of(association).sendall(acceptance)
        scu.eventually(lambda: association.is_aborted)
    with scu.calling(receiver.port) as association:
        scu.wire_of(association).sendall(struct.pack(">BxL", 5, 5) + bytes(5))
        scu.eventually(lambda: association.is_aborted)
    scu.eventually(lambda: len(receiver.lines()) == 3)
    assert [reason[:29] for reason in reasons(receiver)] == [
        "It began with a PDU of type 0",
        "A PDU of type 0x02 came withi",
        "A PDU of type 0x05 says to ha",
    ]


def test_as_much_as_a_request_may_ask_for_is_taken(receiver: Receiver, scu: Scu) -> None:
    many = [f"1.2.3.{number}" for number in range(200)]
    contexts = [(f"1.2.4.{number}", [*many, IMPLICIT]) for number in range(128)]
    with scu.calling(receiver.port, contexts) as association:
        assert len(association.accepted_contexts) == 128


def test_many_who_wait_are_not_all_heard_and_others_are(
    make_receiver: MakeReceiver, scu: Scu
) -> None:
    receiver = make_receiver(limits={"request_s": 60.0})
    waiting = [connected(receiver) for _ in range(65)]
    try:
        said = scu.eventually(lambda: reasons(receiver))
        assert said == ["Too many connections wait to be heard, or too many of this address."]
        assert waiting[64].recv(1) == b""
        waiting.pop(0).close()
        with socket.create_connection(
            ("127.0.0.1", receiver.port), 20, source_address=("127.0.0.2", 0)
        ) as other:
            other.sendall(struct.pack(">BxL", 1, 2**31))
            assert other.recv(100) == INVALID_PARAMETER
    finally:
        for wire in waiting:
            wire.close()


def test_who_calls_while_nothing_more_can_be_opened_is_heard_later(
    make_receiver: MakeReceiver, scu: Scu
) -> None:
    receiver = make_receiver(("prlimit", "--nofile=48:48"))
    waiting = [connected(receiver) for _ in range(48)]
    try:
        assert scu.eventually(lambda: reasons(receiver)) == ["Too many open files"]
    finally:
        for wire in waiting:
            wire.close()
    with scu.calling(receiver.port, [("1.2.840.10008.1.1", [IMPLICIT])]) as association:
        assert association.is_established
    assert reasons(receiver) == ["Too many open files"]


@given(st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 10**6)), min_size=1, max_size=50))
def test_pace_is_judged_over_whole_stretches(arrivals: list[tuple[float, int]]) -> None:
    limits = Limits(silence_s=60.0, bytes_per_s=1000.0)
    pace = Pace(limits, 0.0)
    at = began = 0.0
    brought = 0
    for waited, size in arrivals:
        at += waited
        brought += size
        over = at - began >= 60.0
        assert pace.too_slow(size, at) is (over and brought < (at - began) * 1000)
        if over:
            began, brought = at, 0


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (bytes(67), "too few for its titles"),
        (bytes(68) + b"\x20\0\0\2\1\0", "ends within its head"),
        (bytes(68) + b"\x20\0\0\xff\1\0\0\0", "goes beyond its end"),
        (bytes(68) + b"\x21\0\0\0", "unknown type 0x21"),
        (bytes(68) + b"\x20", "ends within its head"),
        (bytes(68) + b"\x20\0\0\4\1\0\0\0" * 129, "129 presentation contexts"),
        (bytes(68) + b"\x20\0\0\4\1\0\0\0" * 131, "more than 130 items"),
    ],
)
def test_requests_without_the_shape_of_one_are_told_apart(body: bytes, sentence: str) -> None:
    with pytest.raises(Unshapely, match=sentence):
        check(memoryview(body))


def request(called: bytes, calling: bytes) -> bytes:
    """An association request for Verification."""

    def item(kind: int, content: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(content)) + content

    syntaxes = item(0x30, b"1.2.840.10008.1.1") + item(0x40, IMPLICIT.encode())
    user = item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3")
    body = struct.pack(">HH", 1, 0) + called + calling + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, b"\1\0\0\0" + syntaxes)
    body += item(0x50, user)
    return struct.pack(">BxL", 1, len(body)) + body


def test_titles_padded_with_nuls_are_those_of_the_device(receiver: Receiver, scu: Scu) -> None:
    with connected(receiver) as wire:
        wire.sendall(request(b"DICOMAI".ljust(16, b"\0"), b"CT1".ljust(16, b"\0")))
        assert wire.recv(1) == b"\2"  # A-ASSOCIATE-AC
    (line,) = scu.eventually(receiver.lines)
    assert (line["calling_ae"], line["node"]) == ("CT1", "ct1")


@pytest.mark.parametrize(
    ("called", "calling", "which", "diagnostic"),
    [
        (b"DICOMAI", "CT-Süd".encode(), r"calling AE title is 'CT-S\xc3\xbcd'", 3),
        (b"DICOMAI", b"CT\\1", r"calling AE title is 'CT\\1'", 3),
        (b"DICOMAI", b"CT1\0junk", r"calling AE title is 'CT1\x00junk'", 3),
        (b"", b"CT1", "called AE title is ''", 7),
    ],
)
def test_a_title_that_is_none_is_rejected_and_logged(
    receiver: Receiver, scu: Scu, called: bytes, calling: bytes, which: str, diagnostic: int
) -> None:
    with connected(receiver) as wire:
        wire.sendall(request(called.ljust(16), calling.ljust(16)))
        assert wire.recv(100) == bytes((3, 0, 0, 0, 0, 4, 0, 1, 1, diagnostic))
    (reason,) = scu.eventually(lambda: reasons(receiver))
    assert which in reason
    assert reason.endswith("Change it at the device.")


def test_places_are_counted_over_receiver_processes_and_freed_by_a_kill(
    make_receiver: MakeReceiver, scu: Scu
) -> None:
    first, second = (make_receiver(shares_port=True, max_associations=2) for _ in range(2))
    with scu.calling(first.port) as one, scu.calling(first.port) as other:
        assert one.is_established
        assert other.is_established
        for _ in range(6):  # the kernel gives them to either
            with scu.calling(first.port) as more:
                assert more.acceptor.primitive.diagnostic == 2
        first.kill()
        second.kill()
    first.start()
    with scu.calling(first.port) as one, scu.calling(first.port) as other:
        assert one.is_established
        assert other.is_established
