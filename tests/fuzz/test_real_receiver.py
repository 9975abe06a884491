"""A real receiver among hostile peers: neighbours notice nothing, and nothing of them stays."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fuzz_material import conversations, examples
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dicomai.net.slots import FOLDER, Slot, Slots
from tests.conftest import Authority
from tests.net.conftest import ReceiverMaker, Scu, make_receiver, scu  # noqa: F401  # fixtures

PLACES = 10
MAX_RESIDENT_KIB = 150 * 1024
# A peer that closes without reading: the kernel sends RST.
RESET = struct.pack("ii", 1, 0)


def process_facts(pid: int) -> tuple[int, int]:
    """Return how many threads and open files a process has."""
    here = Path(f"/proc/{pid}")
    return len(list((here / "task").iterdir())), len(list((here / "fd").iterdir()))


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def test_hostile_peers_harm_nobody_and_leave_nothing(
    make_receiver: ReceiverMaker,  # noqa: F811  # pytest hands in a fixture by its name
    scu: Scu,  # noqa: F811  # the same
    authority: Authority,
    free_ports: Callable[[int], list[int]],
) -> None:
    certificate, key = authority.issue("receiver-ec")
    secured = free_ports(2)[1]
    receiver = make_receiver(
        tls={"port": secured, "files": {"certificate": str(certificate), "key": str(key)}},
        nodes=[{"name": "any", "ae_title": "*"}],
        max_associations=PLACES,
        limits={"request_s": 3.0, "silence_s": 20.0, "object_bytes": 2**20},
    )
    pid = receiver.process.pid
    usual = process_facts(pid)
    stayed: list[socket.socket] = []
    sent: list[bytes] = []

    with scu.calling(receiver.port) as neighbour:

        @settings(
            max_examples=examples(50),
            deadline=None,
            suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
        )
        @given(
            conversations(),
            st.integers(1, 5),
            st.sampled_from(("close", "reset", "hear", "stay")),
            st.sampled_from(("plain", "plain", "tls", "plain where tls is due")),
        )
        def run(said: bytes, pieces: int, ending: str, over: str) -> None:
            wire: socket.socket | None
            wire = connected(receiver.port if over == "plain" else secured, tls=over == "tls")
            speak(wire, said, pieces, hear=ending == "hear")
            if ending == "stay":
                stayed.append(wire)
                wire = stayed.pop(0) if len(stayed) > PLACES else None
            if wire is not None:
                hang_up(wire, reset=ending == "reset")
            data_set = scu.tiny(tail=len(sent).to_bytes(4, "little"))
            assert scu.send(neighbour, data_set) == 0
            sent.append(data_set)

        try:
            run()
        finally:
            for wire in stayed:
                wire.close()

    scu.eventually(lambda: process_facts(pid) == usual, 20)
    assert receiver.process.poll() is None
    assert resident_kib(pid) < MAX_RESIDENT_KIB
    slots = Slots(receiver.spool / FOLDER, PLACES)
    taken = [slots.take("any", 0) for _ in range(PLACES)]
    assert all(isinstance(place, Slot) for place in taken)
    assert set(sent) <= set(receiver.data_sets())
    log = receiver.log.read_text()
    assert "Traceback" not in log
    assert "connection failed" not in log
    assert not list(receiver.spool.rglob(".0*.part"))


def connected(port: int, *, tls: bool) -> socket.socket:
    wire = socket.create_connection(("127.0.0.1", port), 20)
    if not tls:
        return wire
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(wire)


def speak(wire: socket.socket, said: bytes, pieces: int, *, hear: bool) -> None:
    """Say something to the receiver in some pieces; hear it out if that is wanted."""
    size = len(said) // pieces + 1
    with suppress(OSError):  # it may hang up first
        for at in range(0, len(said), size):
            wire.sendall(said[at : at + size])
        if hear:
            wire.shutdown(socket.SHUT_WR)
            while wire.recv(4096):
                pass


def hang_up(wire: socket.socket, *, reset: bool) -> None:
    if reset:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    wire.close()
