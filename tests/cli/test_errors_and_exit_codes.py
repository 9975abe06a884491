"""What a person reads when something goes wrong, and what a script is told."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import typer
from sqlalchemy import Engine
from typer.testing import CliRunner

from dicomai.cli.main import Commands
from dicomai.cli.trouble import sentence_of
from dicomai.errors import ConfigError, DatabaseError, InputError, NotFound
from tests.cli.conftest import Dicomai


def run_one_that_raises(error: Exception) -> tuple[int, str]:
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @app.callback()
    def _group() -> None:
        pass

    @app.command("go")
    def go() -> None:
        raise error

    done = CliRunner().invoke(app, ["go"])
    return done.exit_code, done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("Job 7, load: series 1.2.3 has no slice at 42.5 mm."), 1),
        (ConfigError("dicomai.toml: no."), 3),
        (NotFound("There is no job 7."), 4),
        (DatabaseError("The database is away."), 5),
    ],
)
def test_an_expected_error_is_its_sentence_and_its_code(error: Exception, code: int) -> None:
    assert run_one_that_raises(error) == (code, f"dicomai: {error}\n")


def test_the_system_s_errors_name_the_file() -> None:
    code, text = run_one_that_raises(PermissionError(13, "Permission denied", "/data/spool"))
    assert code == 1
    assert text.startswith(
        "dicomai: /data/spool: permission denied. Run this as the service's user"
    )


def test_a_defect_is_a_sentence_and_its_traceback_is_in_a_private_file() -> None:
    code, text = run_one_that_raises(ZeroDivisionError("secret"))
    assert code == 1
    assert text.startswith("dicomai: This is a defect of dicomai")
    assert "Traceback" not in text
    assert "secret" not in text
    details = Path(next(word for word in text.split() if "dicomai-error-" in word).rstrip(";"))
    assert "ZeroDivisionError: secret" in details.read_text()
    assert stat.S_IMODE(details.stat().st_mode) == 0o600
    details.unlink()


def test_an_error_that_names_a_descriptor_by_its_number_is_a_sentence() -> None:
    trouble = OSError(errno.EIO, os.strerror(errno.EIO), 5)
    assert sentence_of(trouble) == "input/output error."


def test_a_defect_whose_details_find_no_room_is_a_sentence_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    code, text = run_one_that_raises(ZeroDivisionError("secret"))
    assert code == 1
    assert text.startswith("dicomai: This is a defect of dicomai")
    assert "could not be written (No such file or directory)" in text


@pytest.mark.parametrize(
    "command", [("status",), ("jobs", "--json"), ("job", "1"), ("pause", "node", "PACS1")]
)
def test_a_lost_database_is_named_with_what_it_knew_and_no_other_is_made(
    service: Engine, dicomai: Dicomai, tmp_path: Path, command: tuple[str, ...]
) -> None:
    service.dispose()
    lost = tmp_path / "dicomai.db"
    lost.unlink()
    (tmp_path / "archive" / "a0" / "1.2.3").mkdir(parents=True)
    answer = dicomai(*command)
    assert answer.code == 3
    assert f"The database {lost} does not exist." in answer.err
    assert "1 study that lies in" in answer.err
    assert "dicomai db upgrade" in answer.err
    assert not lost.exists()


def test_usage_is_2_and_says_what_is_near(dicomai: Dicomai) -> None:
    answer = dicomai("modles")
    assert answer.code == 2
    assert "models" in answer.err


def test_text_of_peers_is_shown_without_its_control_characters() -> None:
    _, text = run_one_that_raises(NotFound("There is no study \x1b[2J[red]x[/red]."))
    assert text == "dicomai: There is no study \\x1b[2J[red]x[/red].\n"


def test_a_reader_that_goes_away_is_no_defect(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "dicomai", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"defect" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_changes_no_answer_and_no_exit_code(
    service: Engine, tmp_path: Path, closed: str
) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        shell = ["sh", "-c", f'exec "$0" -m dicomai "$@" {closed}', sys.executable, *arguments]
        return subprocess.run(shell, cwd=tmp_path, capture_output=True, check=False)

    jobs = run("jobs", "--json")
    assert (jobs.returncode, jobs.stderr) == (0, b"")
    assert jobs.stdout == (b"" if ">&- " in f"{closed} ".replace("2>", "") else b"[]\n")
    assert run("job", "7").returncode == 4
    assert run("config", "check").returncode == 0


def test_a_locale_that_is_not_utf_8_shows_what_it_lacks_as_escapes(
    service: Engine, tmp_path: Path
) -> None:
    file = tmp_path / "dicomai.toml"
    file.write_text(
        file.read_text("utf-8").replace('name = "x-ray"', 'name = "Röntgen 山"'), "utf-8"
    )
    latin_1 = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}

    def run(*arguments: str) -> str:
        dicomai = [sys.executable, "-m", "dicomai", "config", "check", *arguments]
        done = subprocess.run(
            dicomai, cwd=tmp_path, env=latin_1, stdout=subprocess.PIPE, check=False
        )
        return done.stdout.decode("latin-1")

    assert "Röntgen \\u5c71" in run()
    file.write_text(file.read_text("utf-8") + '"Röntgen 山" = 1\n', "utf-8")
    (problem,) = json.loads(run("--json"))
    assert "Röntgen 山" in problem["key"]


def test_help_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dicomai", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    heavy = {"torch", "sqlalchemy", "pydicom", "pynetdicom", "numpy", "highdicom", "pydantic"}
    assert not loaded & heavy
    for command in ("serve", "status", "study", "demo", "doctor"):
        assert command in done.stdout
