"""A command line in this process, and logging as it was before."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import Engine
from typer.testing import CliRunner

from dicomai.cli.main import app
from dicomai.store.engine import open_engine

# For `catalogue_rows`.
sys.path.insert(0, str(Path(__file__).parents[1] / "store"))


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    yield
    root.handlers[:], logging.raiseExceptions = handlers, raises
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command printed and returned."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, parsed."""
        return json.loads(self.out)


Dicomai = Callable[..., Answer]


@pytest.fixture
def dicomai(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Dicomai:
    """Run a command in an empty folder, with no configuration but what it is given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DICOMAI_CONFIG", raising=False)

    def run(*arguments: str | Path) -> Answer:
        done = CliRunner().invoke(app, [str(each) for each in arguments])
        return Answer(code=done.exit_code, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="session")
def _initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("initialised")
    done = CliRunner().invoke(app, ["init", str(folder)])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def service(_initialised: Path, dicomai: Dicomai, tmp_path: Path) -> Engine:
    """The catalogue of a new service whose folder is the current one."""
    shutil.copytree(_initialised, tmp_path, dirs_exist_ok=True)
    return open_engine(f"sqlite:///{tmp_path / 'dicomai.db'}")
