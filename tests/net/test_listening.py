"""A port that takes no connections any more is not left so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from dicomai.errors import TransientError
from dicomai.net.connection import AssociationServer
from dicomai.net.query_server import QueryConfig, answer
from dicomai.net.receiver import ReceiverConfig, receive

Serve = Callable[[int, Path, threading.Event], None]


def _receive(port: int, spool: Path, stop: threading.Event) -> None:
    config = ReceiverConfig(
        ae_title="DICOMAI",
        host="127.0.0.1",
        port=port,
        nodes=(),
        spool=spool,
        reserve_bytes=0,
        max_associations=10,
    )
    receive(config, lambda: None, stop)


def _answer(port: int, _: Path, stop: threading.Event) -> None:
    config = QueryConfig(
        ae_title="DICOMAI", host="127.0.0.1", port=port, nodes=(), max_associations=10
    )
    answer(config, cast("Any", None), lambda: None, stop)


@pytest.mark.parametrize("serve", [_receive, _answer])
def test_a_port_that_is_not_listened_at_any_more_ends_its_role_which_is_started_again(
    serve: Serve, free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(_: AssociationServer) -> None:
        raise MemoryError

    monkeypatch.setattr(AssociationServer, "service_actions", no_memory)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as beside:
        role = beside.submit(serve, free_port, tmp_path, stop)
        try:
            with pytest.raises(TransientError, match=f"Port {free_port} takes no connections"):
                role.result(20)
        finally:
            stop.set()
