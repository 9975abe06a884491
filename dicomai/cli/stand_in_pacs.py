"""A stand-in for a PACS: takes every object it is sent, and keeps it as a file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import C_STORE

from dicomai.dicom.uid import validated
from dicomai.errors import InputError

AE_TITLE: Final = "PACS"
_VERIFICATION: Final = "1.2.840.10008.1.1"
_SUCCESS: Final = 0x0000
_CANNOT_UNDERSTAND: Final = 0xC000


@dataclass(slots=True, kw_only=True)
class StandInPacs:
    """What it is called, where it listens, and what it was sent until now."""

    port: int
    folder: Path
    _files: dict[str, Path] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def files(self) -> dict[str, Path]:
        """Return the files it holds, by SOP Instance UID."""
        with self._lock:
            return dict(self._files)

    def keep(self, event: evt.Event) -> int:
        """Write the object of a C-STORE request as a file; return the status (PS3.4 B.2.3)."""
        assert isinstance(event.request, C_STORE)
        try:
            uid = validated(str(event.request.AffectedSOPInstanceUID), "SOPInstanceUID")
        except InputError:
            return _CANNOT_UNDERSTAND
        path = self.folder / f"{uid}.dcm"
        path.write_bytes(event.encoded_dataset())
        with self._lock:
            self._files[uid] = path
        return _SUCCESS


@contextmanager
def stand_in_pacs(folder: Path) -> Iterator[StandInPacs]:
    """Run one on a free port of this machine, for as long as the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    entity = AE(AE_TITLE)
    entity.supported_contexts = [*AllStoragePresentationContexts]
    entity.add_supported_context(_VERIFICATION)
    pacs = StandInPacs(port=0, folder=folder)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, pacs.keep)]
    )
    assert server is not None
    pacs.port = server.server_address[1]
    try:
        yield pacs
    finally:
        server.shutdown()
