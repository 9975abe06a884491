"""What callers call themselves becomes part of a name in the spool, and never a path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomai.dicom.dates import now
from dicomai.spool import entries, reader

Receiver = Any  # of conftest.py, which tests can't import
MakeReceiver = Callable[..., Receiver]
Scu = Any

titles = st.text(st.characters(max_codepoint=0x7E), min_size=1, max_size=16)


def test_hostile_ae_titles_stay_names(make_receiver: MakeReceiver, scu: Scu) -> None:
    receiver = make_receiver(nodes=[{"name": "any", "ae_title": "*"}])
    hostile = ("../../../x", "/etc/passwd", "..", ".", "a,b,c", "%2e%2e%2f", "$(reboot)", "-rf")
    for number, title in enumerate(hostile):
        uid = f"1.2.3.{number + 1}"
        with scu.calling(receiver.port, calling_ae=title) as association:
            data_set = scu.tiny(sop_instance=uid.encode())
            assert scu.send(association, data_set, sop_instance=uid) == 0
    facts = reader.associations(receiver.spool)
    assert [each.calling_ae for each in facts] == list(hostile)
    assert {path.name for path in receiver.spool.parent.iterdir()} == {"spool", "receiver.log"}
    found = [path.relative_to(receiver.spool) for path in receiver.spool.rglob("*")]
    assert all(len(path.parts) <= 2 for path in found)


@given(calling=titles, called=titles)
def test_any_title_is_one_name_and_is_read_back(
    calling: str, called: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spool = tmp_path_factory.mktemp("spool")
    writer = entries.opened(
        spool,
        calling_ae=calling,
        called_ae=called,
        address="2001:db8:1111:2222:3333:4444:5555:6666",
        node="ä" * 32,
        started_at=now(),
        retrieved=True,
    )
    writer.end("released", now())
    (facts,) = reader.associations(spool)
    assert (facts.calling_ae, facts.called_ae, facts.node) == (calling, called, "ä" * 32)
