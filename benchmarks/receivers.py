"""Programs that receive objects, started one after the other by `receive.py` and stopped again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

AE_TITLE: Final = "RECEIVER"
MAX_PDU_BYTES: Final = 131072
_START_S: Final = 60.0

# With a folder and a port, gives the processes that receive into it.
Receiver = Callable[[Path, int], "subprocess.Popen[bytes]"]


def bare(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """DCMTK's storescp, a process per association, objects as they came; promises nothing."""
    return _started(_storescp(folder, port))


def promise(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """The same, and each file and its folder durable before the answer: `same_promise.c`."""
    library = folder / "same_promise.so"
    source = Path(__file__).with_name("same_promise.c")
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return _started(_storescp(folder, port), LD_PRELOAD=str(library))


def orthanc(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Orthanc with its embedded database."""
    configuration = {
        "DicomAet": AE_TITLE,
        "DicomPort": port,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "UnknownSopClassAccepted": True,
        "MaximumPduLength": MAX_PDU_BYTES,
        "HttpServerEnabled": False,
        "StorageDirectory": str(folder / "objects"),
        "IndexDirectory": str(folder / "index"),
    }
    file = folder / "orthanc.json"
    file.write_text(json.dumps(configuration))
    return _started(["Orthanc", str(file)])


def pynetdicom(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """pynetdicom alone: each object as it came, written to a file."""
    objects = folder / "objects"
    objects.mkdir()
    return _started([sys.executable, "-c", _PLAIN, str(objects), str(port), str(MAX_PDU_BYTES)])


def dicomai(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """`dicomai receive`, one process."""
    return _dicomai(folder, port, 1)


def dicomai_twice(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """`dicomai receive`, two processes at one port."""
    return _dicomai(folder, port, 2)


RECEIVERS: Final[Mapping[str, Receiver]] = MappingProxyType(
    {
        "storescp": bare,
        "same promise": promise,
        "Orthanc": orthanc,
        "pynetdicom": pynetdicom,
        "dicomai": dicomai,
        "dicomai x2": dicomai_twice,
    }
)


def missing(name: str) -> str:
    """Return the program that a receiver needs and this machine lacks, or nothing."""
    needed = {
        "storescp": ["storescp"],
        "same promise": ["storescp", "cc"],
        "Orthanc": ["Orthanc"],
    }.get(name, [])
    return next((program for program in needed if shutil.which(program) is None), "")


@contextmanager
def running(name: str, folder: Path) -> Iterator[tuple[int, int]]:
    """Give port and process ID of a receiver that listens, with a new folder for it."""
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    process = RECEIVERS[name](folder, port)
    try:
        _wait_until_it_listens(process, port, 2 if name == "dicomai x2" else 1)
        yield port, process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        # What one leaves to the kernel to write must not be the next one's work.
        os.sync()


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process, or a child of it, had resident."""
    peaks = []
    for each in (pid, *_children(pid)):
        peaks += [
            int(line.split()[1]) * 1024
            for line in Path(f"/proc/{each}/status").read_text().splitlines()
            if line.startswith("VmHWM:")
        ]
    return max(peaks)


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    direct = [int(each) for each in path.read_text().split()]
    return direct + [each for child in direct for each in _children(child)]


def _storescp(folder: Path, port: int) -> list[str]:
    objects = folder / "objects"
    objects.mkdir()
    options = ["--fork", "+B", "-pdu", str(MAX_PDU_BYTES), "-aet", AE_TITLE, "-od", str(objects)]
    return ["storescp", *options, str(port)]


def _dicomai(folder: Path, port: int, processes: int) -> subprocess.Popen[bytes]:
    for name in ("spool", "archive", "quarantine", "models"):
        (folder / name).mkdir()
    file = folder / "dicomai.toml"
    file.write_text(
        f'[service]\ndata = "{folder}"\n'
        f'[receiver]\nae_title = "{AE_TITLE}"\nhost = "127.0.0.1"\nport = {port}\n'
        f"reserve_bytes = 0\nprocesses = {processes}\n"
        '[[nodes]]\nname = "any"\nae_title = "*"\n'
    )
    return _started([sys.executable, "-m", "dicomai", "receive", "--config", str(file)])


def _started(command: list[str], **variables: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=os.environ | {"TCP_NODELAY": "1", "TCP_BUFFER_LENGTH": "1048576"} | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, processes: int) -> None:
    """Wait until so many processes listen; what starts beside the first would slow it down."""
    deadline = time.monotonic() + _START_S
    echo = ["echoscu", "-to", "2", "-aet", "CT1", "-aec", AE_TITLE, "127.0.0.1", str(port)]
    while _listening(port) < processes or _refuses(echo):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} does not listen")
        time.sleep(0.05)


def _refuses(echo: list[str]) -> bool:
    return subprocess.run(echo, check=False, capture_output=True).returncode != 0


def _listening(port: int) -> int:
    """Return how many sockets listen on a port."""
    return sum(
        fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for fields in map(str.split, Path(table).read_text().splitlines()[1:])
    )


_PLAIN: Final = """
import sys
from pathlib import Path
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification

def store(event, folder):
    name = event.request.AffectedSOPInstanceUID
    (folder / f"{name}.dcm").write_bytes(event.encoded_dataset())
    return 0x0000

entity = AE()
entity.maximum_pdu_size = int(sys.argv[3])
entity.maximum_associations = 100
entity.supported_contexts = AllStoragePresentationContexts
entity.add_supported_context(Verification)
entity.start_server(
    ("127.0.0.1", int(sys.argv[2])),
    evt_handlers=[(evt.EVT_C_STORE, store, [Path(sys.argv[1])])],
)
"""
