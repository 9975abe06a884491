"""A real receiver among hostile peers: neighbours notice nothing, and nothing of them stays."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from fuzz_material import conversations, examples
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dicomai.net.slots import FOLDER, Slot, Slots
from tests.net.conftest import ReceiverMaker, Scu, make_receiver, scu  # noqa: F401  fixtures

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
    make_receiver: ReceiverMaker,  # noqa: F811
    scu: Scu,  # noqa: F811
) -> None:
    receiver = make_receiver(
        nodes=[{"name": "any", "ae_title": "*"}],
        max_associations=PLACES,
        limits={"request_s": 1.0, "silence_s": 5.0, "object_bytes": 2**20},
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
            conversations(), st.integers(1, 5), st.sampled_from(("close", "reset", "hear", "stay"))
        )
        def run(said: bytes, pieces: int, ending: str) -> None:
            stranger(receiver.port, said, pieces, ending, stayed)
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


def stranger(port: int, said: bytes, pieces: int, ending: str, stayed: list[socket.socket]) -> None:
    """Say something to the receiver in some pieces, and end in one of four ways."""
    wire = socket.create_connection(("127.0.0.1", port), 20)
    size = len(said) // pieces + 1
    try:
        for at in range(0, len(said), size):
            wire.sendall(said[at : at + size])
        if ending == "hear":
            wire.shutdown(socket.SHUT_WR)
            while wire.recv(4096):
                pass
    except OSError:
        pass  # it hung up first, which it may
    if ending == "stay":
        stayed.append(wire)
        if len(stayed) > PLACES:
            stayed.pop(0).close()
        return
    if ending == "reset":
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    wire.close()
