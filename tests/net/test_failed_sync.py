"""A sync that failed says nothing the next time: nothing may rest on one that was tried again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

MakeReceiver = Callable[..., Any]  # of conftest.py, which tests can't import
Scu = Any


@pytest.mark.parametrize("failing", [2, 3], ids=["folder", "spool"])
def test_names_that_a_failed_sync_left_uncertain_are_not_counted_on(
    make_receiver: MakeReceiver, scu: Scu, peer: Callable[[str], str], failing: int
) -> None:
    broken = f"inject=fsync:error=EIO:when={failing}"
    receiver = make_receiver(prefix=[peer("strace"), "-f", "--seccomp-bpf", "-e", broken])
    with scu.calling(receiver.port) as association:
        assert scu.send(association, scu.tiny()) == 0xA700
        (uncertain,) = associations_of(receiver)
        for uid in ("1.2.3.5", "1.2.3.6"):
            data_set = scu.tiny(sop_instance=uid.encode())
            assert scu.send(association, data_set, sop_instance=uid) == 0
    kept = {path.parent.name for path in receiver.spool.rglob("*.dcm")}
    assert kept == associations_of(receiver) - {uncertain}
    assert len(kept) == 1
    # Ingest takes it away: it has ended, and holds nothing.
    assert list((receiver.spool / uncertain).glob("end-*-lost"))


def associations_of(receiver: Any) -> set[str]:
    return {folder.name for folder in receiver.spool.iterdir() if not folder.name.startswith(".")}
