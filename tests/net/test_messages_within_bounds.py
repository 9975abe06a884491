"""Messages that bring no objects: only in their own contexts, and no larger than they may be."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from pydicom.dataset import Dataset

from dicomai.errors import InputError
from dicomai.net.decoding import decoded
from dicomai.spool import reader

MPPS = "1.2.840.10008.3.1.2.3.3"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
MakeReceiver = Callable[..., Any]  # of conftest.py, which tests can't import
Scu = Any


def test_who_may_only_echo_can_say_nothing_of_steps(make_receiver: MakeReceiver, scu: Scu) -> None:
    receiver = make_receiver(nodes=[{"name": "ct1", "ae_title": "CT1", "may": ["echo"]}])
    step = Dataset()
    step.PerformedProcedureStepStatus = "IN PROGRESS"
    with scu.calling(receiver.port, ((VERIFICATION, (IMPLICIT,)),)) as association:
        (context,) = association.accepted_contexts
        context._abstract_syntax = MPPS  # what pynetdicom looks at before it sends
        answer, _ = association.send_n_create(step, MPPS, "1.2.3.9")
    assert answer.Status == 0x0118
    assert list(reader.entries(receiver.spool)) == []


def test_a_deflated_message_is_inflated_no_further_than_it_may_be() -> None:
    machine = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = b"".join(machine.compress(bytes(2**20)) for _ in range(200)) + machine.flush()
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="too large"):
            decoded(BytesIO(bomb), DEFLATED)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000_000
