"""A port that takes no connections any more is not left so."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from dicomai.errors import ConfigError, TransientError
from dicomai.net.connection import AssociationServer, not_listening
from dicomai.net.query_server import QueryConfig, answer
from dicomai.net.receiver import ReceiverConfig, receive

Serve = Callable[..., None]


def _receive(port: int, spool: Path, stop: threading.Event, host: str = "127.0.0.1") -> None:
    config = ReceiverConfig(
        ae_title="DICOMAI",
        host=host,
        port=port,
        nodes=(),
        spool=spool,
        reserve_bytes=0,
        max_associations=10,
    )
    receive(config, lambda: None, stop)


def _answer(port: int, _: Path, stop: threading.Event, host: str = "127.0.0.1") -> None:
    config = QueryConfig(ae_title="DICOMAI", host=host, port=port, nodes=(), max_associations=10)
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


@pytest.mark.parametrize("serve", [_receive, _answer])
def test_an_address_that_may_come_is_tried_again(
    serve: Serve, free_port: int, tmp_path: Path
) -> None:
    """systemd starts again what failed, unless it says that the configuration is wrong."""
    said = rf"can't listen on 192\.0\.2\.1 port {free_port}: .* network up\?"
    with pytest.raises(TransientError, match=said):
        serve(free_port, tmp_path, threading.Event(), "192.0.2.1")


@pytest.mark.parametrize("serve", [_receive, _answer])
def test_a_port_that_is_in_use_is_tried_again(serve: Serve, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = f"can't listen on 127.0.0.1 port {port}: .* another program"
        with pytest.raises(TransientError, match=said):
            serve(port, tmp_path, threading.Event(), "127.0.0.1")


def test_a_name_that_no_server_resolves_yet_is_tried_again() -> None:
    trouble = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    error = not_listening("Receiver", "ct-gateway", 104, "receiver.host", trouble)
    assert isinstance(error, TransientError)
    assert "Temporary failure in name resolution. Is a name server in reach?" in error.sentence
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    mistyped = not_listening("Receiver", "ct-gatewya", 104, "receiver.host", unknown)
    assert isinstance(mistyped, ConfigError)


def test_a_port_that_is_not_allowed_is_told_with_what_allows_it() -> None:
    trouble = PermissionError(errno.EACCES, "Permission denied")
    error = not_listening("Receiver", "0.0.0.0", 104, "receiver.host and receiver.port", trouble)
    assert isinstance(error, ConfigError)
    assert "below 1024 must be allowed" in error.sentence
    assert error.subject == "receiver.port"
