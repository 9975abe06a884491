"""The page on security works as it stands there: its commands run, its settings are right."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine

from dicomai.settings import check_tls, load
from tests.cli.conftest import Dicomai
from tests.conftest import Authority, wait_for_port

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "secure-the-receiver.md"
KEPT = "/etc/dicomai/tls/"


@contextmanager
def receiving(folder: Path, port: int) -> Iterator[None]:
    """Run the receiver of a configuration until the end of the block."""
    command = [sys.executable, "-m", "dicomai", "receive"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process,
    ):
        try:
            wait_for_port(port, process)
            yield
        finally:
            process.terminate()


def blocks(kind: str) -> list[str]:
    found = re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found


def test_the_commands_make_certificates_that_the_settings_take(
    tmp_path: Path, peer: Callable[[str], str]
) -> None:
    peer("openssl")
    for commands in blocks("sh"):
        if commands.startswith("openssl"):
            subprocess.run(["sh", "-ec", commands], cwd=tmp_path, check=True, capture_output=True)
    taken = next(text for text in blocks("toml") if "certificate = " in text and "[tls]" in text)
    file = tmp_path / "dicomai.toml"
    for text in blocks("toml"):
        tables = text if text.startswith("[tls]\ncert") else f"{taken}\n{text}"
        file.write_text(tables.replace("[tls]\nonly", "only").replace(KEPT, ""))
        settings = load(file, {})
        assert check_tls(settings) == ()
    assert settings.nodes[0].tls


def test_the_doctor_tells_of_certificates_that_expire(
    service: Engine, dicomai: Dicomai, tmp_path: Path, authority: Authority
) -> None:
    def found(days: int, key: str = "") -> list[dict[str, str]]:
        certificate, own = authority.issue(f"of-{days}-days", days=days)
        file = tmp_path / "dicomai.toml"
        text = file.read_text().partition("[[nodes]]")[0].partition("\n[tls]")[0]
        file.write_text(
            f'{text}\n[tls]\ncertificate = "{certificate}"\nkey = "{key or own}"\n'
            f'authorities = "{authority.certificate}"\n'
        )
        checks = dicomai("doctor", "--json").json
        return [each for each in checks if each["of"] == "certificate"]

    # The authority's has 30 days.
    assert [each["verdict"] for each in found(400)] == ["good", "warn"]
    (ours, _) = found(7)
    assert ours["verdict"] == "warn"
    assert "6 days from now" in ours["found"]
    assert ours["remedy"].startswith("Renew it")
    (only,) = found(-1)
    assert only["verdict"] == "bad"
    assert "has expired" in only["found"]
    (only,) = found(400, "/nowhere.key")
    assert "/nowhere.key can't be read" in only["found"]


def test_what_has_expired_starts_nothing(
    service: Engine, dicomai: Dicomai, tmp_path: Path, authority: Authority
) -> None:
    certificate, key = authority.issue("gone", days=-1)
    file = tmp_path / "dicomai.toml"
    file.write_text(f'{file.read_text()}\n[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n')
    for command in (("serve",), ("receive",), ("config", "check")):
        answer = dicomai(*command)
        assert answer.code == 3
        assert f"{certificate} has expired" in answer.err


@pytest.mark.parametrize("only", [False, True])
def test_echo_reaches_our_own_receiver_over_tls(
    only: bool,
    service: Engine,
    dicomai: Dicomai,
    tmp_path: Path,
    authority: Authority,
    free_ports: Callable[[int], list[int]],
) -> None:
    certificate, key = authority.issue("elsewhere", extensions="subjectAltName=DNS:elsewhere")
    plain, secured = free_ports(2)
    file = tmp_path / "dicomai.toml"
    text = file.read_text().partition("[[routes]]")[0]
    file.write_text(
        f"{text.replace('port = 11112', f'port = {plain}')}\n[tls]\nport = {secured}\n"
        f'certificate = "{certificate}"\nkey = "{key}"\nonly = {str(only).lower()}\n'
    )
    with receiving(tmp_path, secured):
        answer = dicomai("echo")
        assert answer.code == 0, answer.err
        assert f"port {secured if only else plain}" in answer.out
