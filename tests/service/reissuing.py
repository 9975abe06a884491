"""What tests of corrected patients and orders share: the node that knows better, and the person."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt
from ward import Ward

from dicomai.dicom.dates import now
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.results.reissue import Correction
from dicomai.service.deliver import Deliverer
from dicomai.service.reissue import reissue
from dicomai.store import deliveries
from dicomai.store.engine import reading
from dicomai.store.job import JobId


class Pacs:
    """A node that says whose the study is, and of which procedure, as a test tells it."""

    def __init__(self, port: int) -> None:
        self.patient_id = ""
        self.accession_number = ""
        self.person: dict[str, str] = {}
        self.busy = False
        self.stored: list[Dataset] = []
        self.port = port
        entity = AE("PACS1")
        entity.supported_contexts = AllStoragePresentationContexts
        entity.add_supported_context("1.2.840.10008.5.1.4.1.2.2.1")
        self._server = entity.start_server(
            ("127.0.0.1", port),
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_C_FIND, self._find)],
        )

    def close(self) -> None:
        self._server.shutdown()

    def _store(self, event: evt.Event) -> int:
        found = event.dataset
        found.file_meta = event.file_meta
        self.stored.append(found)
        return 0

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        if self.busy:
            yield 0xA700, None
        elif self.patient_id or self.accession_number:
            found = Dataset()
            found.StudyInstanceUID = event.identifier.StudyInstanceUID
            found.PatientID = self.patient_id
            found.AccessionNumber = self.accession_number
            for keyword, value in self.person.items():
                setattr(found, keyword, value)
            yield 0xFF00, found


def deliver(ward: Ward) -> bool:
    return Deliverer(settings=ward.settings, worker=ward.worker()).work_once()


def corrected(ward: Ward, study: str, **values: str) -> tuple[JobId, ...]:
    uid = StudyInstanceUID(study)
    return reissue(ward.settings, ward.engine, uid, Correction(**values), now)


def states(ward: Ward, analysis: JobId) -> list[tuple[str, str | None]]:
    with reading(ward.engine) as connection:
        return [(each.state, each.held_by) for each in deliveries.of_analysis(connection, analysis)]
