"""The receiver's log never says whose images came, whatever is wrong with them."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

Receiver = Any  # of conftest.py, which tests can't import
MakeReceiver = Callable[..., Receiver]
Scu = Any
NAME, ID = b"Doe^Jane", b"PID4711"


def test_a_patient_is_not_named_whatever_becomes_of_an_object(
    make_receiver: MakeReceiver, scu: Scu
) -> None:
    receiver = make_receiver(limits={"object_bytes": 1000})
    patient = scu.element(0x10, 0x10, "PN", NAME) + scu.element(0x10, 0x20, "LO", ID)
    good = scu.tiny()
    head, ids = good[: good.index(b"\x20\x00\x0d\x00")], good[good.index(b"\x20\x00\x0d\x00") :]
    with scu.calling(receiver.port) as association:
        assert scu.send(association, head + patient + ids) == 0
        assert scu.send(association, head + patient + ids, sop_instance="1.2.3.5") == 0xA900
        assert scu.send(association, head + patient) == 0xC000
        assert scu.send(association, head + patient + ids + bytes(2000)) == 0xA700
    with scu.calling(receiver.port) as association:
        # A message that breaks off, and one that breaks the protocol.
        scu.wire_of(association).sendall(
            struct.pack(">BxLLBB", 4, 6 + len(patient), 2 + len(patient), 1, 2) + patient
        )
        scu.eventually(lambda: association.is_aborted)
    scu.eventually(lambda: len(receiver.lines()) >= 3)
    log = receiver.log.read_bytes()
    assert not re.search(NAME.replace(b"^", rb"\^") + b"|Doe|Jane|" + ID, log)
