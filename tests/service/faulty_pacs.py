"""A server that answers by a script of faults."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt

from dicomai.net.node import Node


class FaultyPeer:
    """Answers each C-STORE with a status; "abort": ends the association; "wait": is very slow."""

    def __init__(
        self,
        script: list[int | str],
        identity: tuple[str, str] | None = None,
        knows: tuple[str, ...] = (),
    ) -> None:
        self.script = script
        self.stored: list[Dataset] = []
        self.associations = 0
        self.asked = threading.Event()
        self.answers = threading.Event()
        self.answers.set()
        self.identity = identity
        self.issuer = ""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        entity = AE("FAULTY")
        entity.require_calling_aet = list(knows)
        entity.supported_contexts = AllStoragePresentationContexts
        entity.add_supported_context("1.2.840.10008.5.1.4.1.2.2.1")
        self._server = entity.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=[
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_C_FIND, self._find),
                (evt.EVT_ACCEPTED, self._accepted),
            ],
        )

    def node(self, *, answers_find: bool = False) -> Node:
        return Node(
            name="PACS1",
            ae_title="FAULTY",
            host="127.0.0.1",
            port=self.port,
            answers_find=answers_find,
        )

    def close(self) -> None:
        self.answers.set()
        self._server.shutdown()

    def _accepted(self, _: evt.Event) -> None:
        self.associations += 1

    def _store(self, event: evt.Event) -> int:
        answer = self.script.pop(0) if self.script else 0x0000
        if answer == "abort":
            event.assoc.abort()
            return 0x0000
        if answer == "wait":
            self.asked.set()
            self.answers.wait(30)
            answer = 0x0000
        assert isinstance(answer, int)
        if answer in (0x0000, 0xB000):
            self.stored.append(event.dataset)
        return answer

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        self.asked.set()
        self.answers.wait(30)
        if self.identity is not None:
            found = Dataset()
            found.StudyInstanceUID = event.identifier.StudyInstanceUID
            found.PatientID, found.AccessionNumber = self.identity
            if self.issuer:
                found.IssuerOfPatientID = self.issuer
            found.QueryRetrieveLevel = "STUDY"
            yield 0xFF00, found
        yield 0x0000, None
