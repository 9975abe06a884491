"""What peers ask of our archive: DCMTK's findscu, getscu and movescu, and Orthanc."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, StoragePresentationContexts, build_context, build_role, evt
from pynetdicom.transport import AssociationSocket
from structlog.testing import capture_logs
from typer.testing import CliRunner

from dicomai.cli.main import app
from dicomai.net.answering import Kept
from dicomai.net.find import STUDY_ROOT_FIND
from dicomai.net.get import STUDY_ROOT_GET
from dicomai.net.identifier import Asked
from dicomai.net.limits import Limits
from dicomai.net.move import STUDY_ROOT_MOVE
from dicomai.net.node import Node
from dicomai.net.query_server import QueryConfig, answer
from dicomai.roles.query import CatalogueArchive

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
RLE = "1.2.840.10008.1.2.5"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
PATIENT_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.1.2"
PATIENT_ROOT_GET = "1.2.840.10008.5.1.4.1.2.1.3"
Findscu = Callable[..., list[Dataset]]


@pytest.fixture
def findscu(peer: Callable[[str], str], our_query_port: int, tmp_path: Path) -> Findscu:
    """Ask with DCMTK's findscu; return its matches as it wrote them."""

    def ask(level: str, *keys: str, root: str = "-S") -> list[Dataset]:
        out = tmp_path / "matches"
        out.mkdir(exist_ok=True)
        for old in out.iterdir():
            old.unlink()
        wanted = [f"QueryRetrieveLevel={level}", *keys]
        done = subprocess.run(
            [peer("findscu"), root, "-X", "-od", str(out), "-aet", "CLIENT", "-aec", "DICOMAI"]
            + [part for key in wanted for part in ("-k", key)]
            + ["127.0.0.1", str(our_query_port)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return [dcmread(path, force=True) for path in sorted(out.iterdir())]

    return ask


def uids(matches: list[Dataset], keyword: str = "StudyInstanceUID") -> list[str]:
    return sorted(str(match[keyword].value) for match in matches)


def test_findscu_finds_by_every_kind_of_key_at_every_level(
    filled: Callable[..., Any], findscu: Findscu, mueller: Any, yamada: Any, doe: Any
) -> None:
    filled()
    every = ("StudyInstanceUID",)
    for keys, found in (
        (every, [mueller, yamada, doe]),
        (("PatientID=P1", *every), [mueller]),
        (("PatientName=doe*", *every), [doe]),
        (("PatientName=yamada^tarou", *every), [yamada]),
        (("AccessionNumber=A?", *every), [mueller, yamada, doe]),
        (("StudyDate=20260401-20260430", *every), [yamada]),
        (("StudyDate=-20260401", "StudyTime=0900-1030", *every), [mueller]),
        (("ModalitiesInStudy=MR", *every), [yamada]),
        (("StudyDescription=*CT", *every), [mueller, doe]),
        ((f"StudyInstanceUID={doe.uid}\\{yamada.uid}",), [yamada, doe]),
        (("PatientID=none", *every), []),
    ):
        assert uids(findscu("STUDY", *keys)) == [each.uid for each in found], keys
    (one,) = findscu(
        "STUDY",
        "AccessionNumber=A1",
        "PatientName",
        "NumberOfStudyRelatedInstances",
        "NumberOfStudyRelatedSeries",
        "ModalitiesInStudy",
    )
    assert (one.NumberOfStudyRelatedInstances, one.NumberOfStudyRelatedSeries) == (5, 2)
    assert one.ModalitiesInStudy == "CT"
    assert str(one.PatientName) == "Müller^Jürgen"
    study = f"StudyInstanceUID={mueller.uid}"
    series = findscu("SERIES", study, "SeriesInstanceUID", "NumberOfSeriesRelatedInstances")
    assert {
        str(each.SeriesInstanceUID): int(each.NumberOfSeriesRelatedInstances) for each in series
    } == {
        mueller.series_uid(1): 3,
        mueller.series_uid(2): 2,
    }
    (second,) = findscu("SERIES", study, "SeriesNumber=2", "SeriesInstanceUID")
    assert second.SeriesInstanceUID == mueller.series_uid(2)
    images = findscu(
        "IMAGE", study, f"SeriesInstanceUID={mueller.series_uid(1)}", "SOPInstanceUID", "Rows"
    )
    assert uids(images, "SOPInstanceUID") == [mueller.sop_uid(1, each) for each in (1, 2, 3)]
    assert {each.Rows for each in images} == {4}
    patients = findscu("PATIENT", "PatientID", "NumberOfPatientRelatedStudies", root="-P")
    assert uids(patients, "PatientID") == ["P1", "P2", "P3"]
    assert uids(findscu("STUDY", "PatientID=P2", "StudyInstanceUID", root="-P")) == [yamada.uid]


def test_names_are_asked_for_and_told_in_their_scripts(
    filled: Callable[..., Any], our_query_port: int, yamada: Any, mueller: Any
) -> None:
    filled()
    entity = AE("CLIENT")
    entity.add_requested_context(STUDY_ROOT_FIND)
    association = entity.associate("127.0.0.1", our_query_port, ae_title="DICOMAI")
    for charset, name, study in (
        ("ISO_IR 192", "山田*", yamada),
        (["", "ISO 2022 IR 87"], "*=山田^*", yamada),
        ("ISO_IR 100", "MÜLLER*", mueller),
    ):
        query = Dataset()
        query.SpecificCharacterSet = charset
        query.QueryRetrieveLevel = "STUDY"
        query.PatientName = name
        query.StudyInstanceUID = ""
        (match,) = [found for _, found in association.send_c_find(query, STUDY_ROOT_FIND) if found]
        assert match.StudyInstanceUID == study.uid
        assert str(match.PatientName) == study.name
        assert match.SpecificCharacterSet == charset
    association.release()


def test_a_query_that_breaks_the_hierarchy_is_refused_with_the_reason(
    filled: Callable[..., Any], our_query_port: int
) -> None:
    filled()
    entity = AE("CLIENT")
    entity.add_requested_context(STUDY_ROOT_FIND)
    association = entity.associate("127.0.0.1", our_query_port, ae_title="DICOMAI")
    for level, words in (
        ("SERIES", "StudyInstanceUID must be one value at level SERIES."),
        ("PATIENT", "QueryRetrieveLevel 'PATIENT' is not one of this model."),
    ):
        query = Dataset()
        query.QueryRetrieveLevel = level
        ((status, _),) = association.send_c_find(query, STUDY_ROOT_FIND)
        assert status.Status == 0xA900
        assert status.ErrorComment == words
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.Modality = "CT"  # not one of this level: told to be passed over
    statuses = [status.Status for status, _ in association.send_c_find(query, STUDY_ROOT_FIND)]
    assert statuses == [0xFF01, 0xFF01, 0xFF01, 0x0000]
    association.release()


@pytest.mark.parametrize("keyword", ["PatientName", "PatientID", "AccessionNumber"])
def test_a_key_that_can_not_be_read_is_refused_and_finds_nobody(
    filled: Callable[..., Any], our_query_port: int, keyword: str
) -> None:
    filled()
    entity = AE("CLIENT")
    entity.add_requested_context(STUDY_ROOT_FIND)
    association = entity.associate("127.0.0.1", our_query_port, ae_title="DICOMAI")
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = ""
    query[keyword] = DataElement(keyword, "UN", "Müller".encode("latin-1"))
    with capture_logs() as logged:
        ((status, match),) = association.send_c_find(query, STUDY_ROOT_FIND)
    association.release()
    assert match is None
    words = f"{keyword} can't be read in ASCII: it declares no other."
    assert (status.Status, status.ErrorComment) == (0xA900, words)
    (why,) = [each["why"] for each in logged if each["event"] == "request refused"]
    assert why == words


def test_a_number_matches_as_a_number(
    filled: Callable[..., Any], our_query_port: int, doe: Any
) -> None:
    filled()
    entity = AE("CLIENT")
    entity.add_requested_context(STUDY_ROOT_FIND, EXPLICIT)
    association = entity.associate("127.0.0.1", our_query_port, ae_title="DICOMAI")
    for rows, found in ((4, 4), (255, 0), (512, 0)):
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE"
        query.StudyInstanceUID = doe.uid
        query.SeriesInstanceUID = doe.series_uid(1)
        query.Rows = rows
        answers = [status.Status for status, _ in association.send_c_find(query, STUDY_ROOT_FIND)]
        assert answers == [0xFF00] * found + [0x0000]
    association.release()


def test_a_query_is_cancelled(
    filled: Callable[..., Any], our_query_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled()
    going = threading.Event()
    search = CatalogueArchive.search

    def endless(self: CatalogueArchive, asked: Any) -> Iterator[Any]:
        while True:
            yield from search(self, asked)
            going.wait(10)

    monkeypatch.setattr(CatalogueArchive, "search", endless)
    entity = AE("CLIENT")
    entity.add_requested_context(STUDY_ROOT_FIND)
    association = entity.associate("127.0.0.1", our_query_port, ae_title="DICOMAI")
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    answers = association.send_c_find(query, STUDY_ROOT_FIND, msg_id=7)
    assert next(answers)[0].Status == 0xFF00
    association.send_c_cancel(7, query_model=STUDY_ROOT_FIND)
    going.set()
    assert [status.Status for status, _ in answers][-1] == 0xFE00
    association.release()


def test_a_cancellation_that_comes_with_its_query_is_seen(
    filled: Callable[..., Any], our_query_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled()
    search = CatalogueArchive.search

    def many(self: CatalogueArchive, asked: Any) -> Iterator[Any]:
        for _ in range(300):
            yield from search(self, asked)

    monkeypatch.setattr(CatalogueArchive, "search", many)
    entity = AE("CLIENT")
    entity.add_requested_context(STUDY_ROOT_FIND)
    association = entity.associate("127.0.0.1", our_query_port, ae_title="DICOMAI")
    wire = association.dul.socket.socket
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)  # what is sent waits, and goes together
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    answers = association.send_c_find(query, STUDY_ROOT_FIND, msg_id=7)
    association.send_c_cancel(7, query_model=STUDY_ROOT_FIND)
    while association.dul.to_provider_queue.queue:
        threading.Event().wait(0.01)
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    assert [status.Status for status, _ in answers][-1] == 0xFE00
    association.release()


def test_what_is_being_sent_is_cancelled_between_two_objects(
    filled: Callable[..., Any],
    our_query_port: int,
    free_ports: Callable[[int], list[int]],
    mueller: Any,
) -> None:
    came: list[str] = []
    association: Any = None

    def stop(event: evt.Event) -> int:
        came.append(event.request.AffectedSOPInstanceUID)
        association.send_c_cancel(7, query_model=model)
        return 0

    (port,) = free_ports(1)
    viewer = AE("VIEWER")
    viewer.supported_contexts = StoragePresentationContexts
    server = viewer.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, stop)]
    )
    filled(Node(name="VIEWER", ae_title="VIEWER", host="127.0.0.1", port=port))
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = mueller.uid
    for model in (STUDY_ROOT_GET, STUDY_ROOT_MOVE):
        entity = AE("CLIENT")
        entity.add_requested_context(model)
        entity.add_requested_context(CT)
        association = entity.associate(
            "127.0.0.1",
            our_query_port,
            ae_title="DICOMAI",
            ext_neg=[build_role(CT, scp_role=True)],
            evt_handlers=[(evt.EVT_C_STORE, stop)],
        )
        if model == STUDY_ROOT_GET:
            answers = association.send_c_get(query, model, msg_id=7)
        else:
            answers = association.send_c_move(query, "VIEWER", model, msg_id=7)
        last, _ = list(answers)[-1]
        assert last.Status == 0xFE00
        # The node is another peer than who cancels, so one more may have left.
        assert last.NumberOfRemainingSuboperations >= 1
        assert last.NumberOfCompletedSuboperations + last.NumberOfRemainingSuboperations == 5
        association.release()
    server.shutdown()
    assert len(came) < 2 * 5


@pytest.mark.parametrize("level", ["STUDY", "SERIES"])
def test_getscu_fetches_what_it_names(
    filled: Callable[..., Any],
    peer: Callable[[str], str],
    our_query_port: int,
    tmp_path: Path,
    study_files: Path,
    mueller: Any,
    level: str,
) -> None:
    filled()
    out = tmp_path / "got"
    out.mkdir()
    keys = ["-k", f"QueryRetrieveLevel={level}", "-k", f"StudyInstanceUID={mueller.uid}"]
    if level == "SERIES":
        keys += ["-k", f"SeriesInstanceUID={mueller.series_uid(2)}"]
    command = [peer("getscu"), "-S", "-aet", "CLIENT", "-aec", "DICOMAI", "-od", str(out), "+B"]
    done = subprocess.run(
        [*command, "127.0.0.1", str(our_query_port), *keys], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    wanted = {
        each.SOPInstanceUID: each
        for each in map(dcmread, (study_files / "A1").iterdir())
        if level == "STUDY" or each.SeriesInstanceUID == mueller.series_uid(2)
    }
    got = {each.SOPInstanceUID: each for each in map(dcmread, out.iterdir())}
    assert got == wanted


def test_nothing_is_sent_where_the_key_of_the_level_is_empty(
    filled: Callable[..., Any], our_query_port: int, mueller: Any
) -> None:
    filled()
    entity = AE("CLIENT")
    models = (STUDY_ROOT_GET, STUDY_ROOT_MOVE, PATIENT_ROOT_GET, PATIENT_ROOT_MOVE)
    for model in (*models, CT):
        entity.add_requested_context(model)
    taken: list[str] = []
    association = entity.associate(
        "127.0.0.1",
        our_query_port,
        ae_title="DICOMAI",
        ext_neg=[build_role(CT, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, lambda event: taken.append("one") or 0)],
    )
    above = {"PatientID": "A1", "StudyInstanceUID": mueller.uid}
    above["SeriesInstanceUID"] = mueller.series_uid(1)
    levels = ("PATIENT", "STUDY", "SERIES", "IMAGE")
    keys = (*above, "SOPInstanceUID")
    for model in models:
        for depth, (level, key) in enumerate(zip(levels, keys, strict=True)):
            if level == "PATIENT" and model in (STUDY_ROOT_GET, STUDY_ROOT_MOVE):
                continue
            for empty in ("", "\\"):
                query = Dataset()
                query.QueryRetrieveLevel = level
                for name in keys[:depth]:
                    setattr(query, name, above[name])
                setattr(query, key, empty)
                if model in (STUDY_ROOT_GET, PATIENT_ROOT_GET):
                    answers = list(association.send_c_get(query, model))
                else:
                    answers = list(association.send_c_move(query, "CLIENT", model))
                ((status, _),) = answers
                assert (status.Status, status.ErrorComment) == (
                    0xA900,
                    f"{key} must say what is to be sent.",
                )
    association.release()
    assert not taken


def test_a_warning_of_who_takes_an_object_shows_in_the_last_answer(
    filled: Callable[..., Any],
    our_query_port: int,
    free_ports: Callable[[int], list[int]],
    doe: Any,
) -> None:
    def coerce(event: evt.Event) -> int:
        return 0xB000

    (port,) = free_ports(1)
    viewer = AE("VIEWER")
    viewer.supported_contexts = StoragePresentationContexts
    server = viewer.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, coerce)]
    )
    filled(Node(name="VIEWER", ae_title="VIEWER", host="127.0.0.1", port=port))
    entity = AE("CLIENT")
    for model in (STUDY_ROOT_GET, STUDY_ROOT_MOVE, CT):
        entity.add_requested_context(model)
    association = entity.associate(
        "127.0.0.1",
        our_query_port,
        ae_title="DICOMAI",
        ext_neg=[build_role(CT, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, coerce)],
    )
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = doe.uid
    got = list(association.send_c_get(query, STUDY_ROOT_GET))
    moved = list(association.send_c_move(query, "VIEWER", STUDY_ROOT_MOVE))
    for status, failed in (got[-1], moved[-1]):
        assert status.Status == 0xB000
        assert status.NumberOfWarningSuboperations == 4
        assert status.NumberOfFailedSuboperations == 0
        assert not failed
    association.release()
    server.shutdown()


def test_movescu_has_a_study_sent_to_a_node(
    filled: Callable[..., Any],
    peer: Callable[[str], str],
    our_query_port: int,
    free_ports: Callable[[int], list[int]],
    doe: Any,
) -> None:
    got: list[tuple[str, str, int]] = []

    def keep(event: evt.Event) -> int:
        request = event.request
        originator = request.MoveOriginatorApplicationEntityTitle
        got.append((request.AffectedSOPInstanceUID, originator, request.MoveOriginatorMessageID))
        return 0

    (port,) = free_ports(1)
    viewer = AE("VIEWER")
    viewer.supported_contexts = StoragePresentationContexts
    server = viewer.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)]
    )
    filled(Node(name="VIEWER", ae_title="VIEWER", host="127.0.0.1", port=port))

    def movescu(destination: str) -> Any:
        keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={doe.uid}")
        return subprocess.run(
            [
                *(peer("movescu"), "-S", "-d", "-aet", "CLIENT", "-aec", "DICOMAI"),
                *("-aem", destination, "127.0.0.1", str(our_query_port), *keys),
            ],
            capture_output=True,
            text=True,
        )

    done = movescu("VIEWER")
    assert done.returncode == 0, done.stderr
    assert sorted(got) == [(doe.sop_uid(1, each), "CLIENT", 1) for each in (1, 2, 3, 4)]
    assert re.search(r"Completed Suboperations\s+: 4", done.stderr)
    unknown = movescu("NOBODY")
    assert "0xa801" in unknown.stderr
    server.shutdown()
    away = movescu("VIEWER")
    assert "0xa702" in away.stderr
    assert re.search(r"Failed Suboperations\s+: 4", away.stderr)


def _retrieved(
    source: Dataset,
    contexts: Sequence[Sequence[str]],
    port: int,
    keep: Callable[[evt.Event], int],
) -> Dataset:
    """Return the last answer to a C-GET of a study, which takes its objects in such contexts."""
    entity = AE("CLIENT")
    # Not one by one: it would join those of one class.
    entity.requested_contexts = [
        build_context(STUDY_ROOT_GET),
        *(build_context(source.SOPClassUID, list(syntaxes)) for syntaxes in contexts),
    ]
    association = entity.associate(
        "127.0.0.1",
        port,
        ae_title="DICOMAI",
        ext_neg=[build_role(source.SOPClassUID, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, keep)],
    )
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = source.StudyInstanceUID
    last, _ = list(association.send_c_get(query, STUDY_ROOT_GET))[-1]
    association.release()
    return last


def test_a_compressed_object_is_sent_as_it_is_or_else_decoded(
    filled: Callable[..., Any], our_query_port: int, sample_data: Path
) -> None:
    here = filled()
    path = sample_data / "transfer-syntaxes" / "ct512" / "ct512_rle.dcm"
    source = dcmread(path)
    here.put(path)
    for syntax in (source.file_meta.TransferSyntaxUID, "1.2.840.10008.1.2"):
        got = []

        def keep(event: evt.Event, got: list[Any] = got) -> int:
            got.append((event.context.transfer_syntax, event.dataset))
            return 0

        last = _retrieved(source, [[syntax]], our_query_port, keep)
        assert (last.Status, last.NumberOfCompletedSuboperations) == (0, 1)
        ((came_in, data_set),) = got
        assert came_in == syntax
        assert data_set.SOPInstanceUID == source.SOPInstanceUID


@pytest.mark.parametrize(("syntax", "sent"), [(RLE, 1), (IMPLICIT, 0)])
def test_room_for_temporary_files_is_wanted_for_what_is_decoded_alone(
    filled: Callable[..., Any],
    our_query_port: int,
    sample_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    syntax: str,
    sent: int,
) -> None:
    path = sample_data / "transfer-syntaxes" / "ct512" / "ct512_rle.dcm"
    source = dcmread(path)
    filled().put(path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    last = _retrieved(source, [[syntax]], our_query_port, lambda _: 0)
    assert last.NumberOfCompletedSuboperations == sent
    assert last.NumberOfFailedSuboperations == 1 - sent


@pytest.mark.parametrize(
    ("contexts", "came"),
    [
        ([[JPEG_LOSSLESS]], JPEG_LOSSLESS),
        ([[JPEG_LOSSLESS], [EXPLICIT]], JPEG_LOSSLESS),
        ([[JPEG_LOSSLESS, EXPLICIT], [IMPLICIT]], JPEG_LOSSLESS),
        ([[EXPLICIT, IMPLICIT], [JPEG_LOSSLESS, EXPLICIT]], JPEG_LOSSLESS),
        ([[JPEG_LOSSLESS, EXPLICIT]], EXPLICIT),
        ([[RLE, EXPLICIT], [IMPLICIT]], IMPLICIT),
    ],
)
def test_an_object_goes_as_it_is_where_a_context_is_left_for_what_does_not(
    filled: Callable[..., Any],
    our_query_port: int,
    sample_data: Path,
    contexts: list[list[str]],
    came: str,
) -> None:
    here = filled()
    path = sample_data / "transfer-syntaxes" / "ct512" / "ct512_jpeg-lossless-sv1-70.dcm"
    source = dcmread(path)
    here.put(path)
    got = []

    def keep(event: evt.Event) -> int:
        data_set = event.dataset
        got.append((event.context.transfer_syntax, len(data_set.PixelData)))
        return 0

    last = _retrieved(source, contexts, our_query_port, keep)
    assert (last.Status, last.NumberOfCompletedSuboperations) == (0, 1)
    ((syntax, length),) = got
    assert syntax == came
    assert length == (len(source.PixelData) if came == JPEG_LOSSLESS else 512 * 512 * 2)


def test_who_may_not_ask_is_not_answered(
    filled: Callable[..., Any], our_query_port: int, peer: Callable[[str], str]
) -> None:
    filled(Node(name="CT1", ae_title="CT1"))
    entity = AE("CT1")
    entity.add_requested_context(STUDY_ROOT_FIND)
    with capture_logs() as logged:
        association = entity.associate("127.0.0.1", our_query_port, ae_title="DICOMAI")
        assert not association.is_established
    (why,) = [each["reason"] for each in logged if each["event"] == "nothing accepted"]
    assert why.endswith('add "query" to `may` of that node.')
    # pynetdicom overlooks a rejection that comes before it has looked at its connection.
    stranger = subprocess.run(
        f"{peer('findscu')} -S -aet STRANGER -aec DICOMAI -k QueryRetrieveLevel=STUDY "
        f"127.0.0.1 {our_query_port}".split(),
        capture_output=True,
        text=True,
    )
    assert "Reason: Calling AE Title Not Recognized" in stranger.stderr
    entity.ae_title = "CLIENT"
    peers = [entity.associate("127.0.0.1", our_query_port, ae_title="DICOMAI") for _ in range(4)]
    assert [each.is_established for each in peers] == [True, True, True, False]
    for each in peers[:3]:
        each.release()


def test_orthanc_looks_into_our_archive_and_fetches(
    filled: Callable[..., Any],
    full_orthanc: Any,
    our_query_port: int,
    study_files: Path,
    tmp_path: Path,
    doe: Any,
) -> None:
    here = filled(full_orthanc.node(may=("echo", "query")))
    ours = dcmread(next((study_files / doe.accession).iterdir()))
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        ours[keyword].value = generate_uid()
    ours.file_meta.MediaStorageSOPInstanceUID = ours.SOPInstanceUID
    ours.AccessionNumber = "OURS"
    ours.save_as(tmp_path / "ours.dcm")
    here.put(tmp_path / "ours.dcm")

    def rest(method: str, path: str, body: object = None) -> Any:
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        url = f"http://127.0.0.1:{full_orthanc.http_port}{path}"
        request = urllib.request.Request(url, raw if body else None, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    # Not for longer: it knows our receiver by the same AE title.
    rest("PUT", "/modalities/archive", ["DICOMAI", "127.0.0.1", our_query_port])
    asked = {"Level": "Study", "Query": {"AccessionNumber": "OUR*", "StudyInstanceUID": ""}}
    query = rest("POST", "/modalities/archive/query", asked)["ID"]
    answer = rest("GET", f"/queries/{query}/answers/0/content?simplify")
    assert answer["StudyInstanceUID"] == ours.StudyInstanceUID
    assert rest("POST", "/tools/lookup", ours.SOPInstanceUID) == []
    rest("POST", f"/queries/{query}/retrieve", "ORTHANC")
    rest("DELETE", "/modalities/archive")
    (there,) = rest("POST", "/tools/lookup", ours.SOPInstanceUID)
    rest("DELETE", there["Path"])


class Endless:
    """An archive that always has one more match, of some kilobytes."""

    ae_title = "DICOMAI"

    def heeds(self, asked: Asked) -> bool:
        return True

    def search(self, asked: Asked) -> Iterator[dict[str, list[str]]]:
        while True:
            yield {"StudyDescription": ["x" * 60_000]}

    def objects(self, asked: Asked) -> list[Kept]:
        return []

    def send(self, *_: object) -> None:
        return


def test_who_takes_no_answers_is_cut_off_and_frees_its_place(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port
    stop, ready = threading.Event(), threading.Event()
    config = QueryConfig(
        ae_title="DICOMAI",
        host="127.0.0.1",
        port=port,
        nodes=(Node(name="CLIENT", ae_title="CLIENT", may=("echo", "query")),),
        max_associations=1,
        limits=Limits(silence_s=0.5),
    )
    serving = threading.Thread(target=answer, args=(config, Endless(), ready.set, stop))
    serving.start()
    assert ready.wait(20)
    entity = AE("CLIENT")
    entity.add_requested_context(STUDY_ROOT_FIND)
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyDescription = ""
    deaf = entity.associate("127.0.0.1", port, ae_title="DICOMAI")
    wire = deaf.dul.socket.socket
    deadline = time.monotonic() + 20
    with capture_logs() as logged:
        with monkeypatch.context() as patched:
            patched.setattr(AssociationSocket, "ready", property(lambda _: False))
            deaf.send_c_find(query, STUDY_ROOT_FIND)
            while not logged:
                assert time.monotonic() < deadline
                threading.Event().wait(0.05)
        again = entity.associate("127.0.0.1", port, ae_title="DICOMAI")
        assert again.is_established
        again.release()
    assert {each["log_level"] for each in logged} == {"info"}, logged
    deaf.abort()
    wire.close()  # pynetdicom forgets to, where its peer closed first
    stop.set()
    serving.join(20)
    assert not serving.is_alive()


def test_who_takes_no_answers_does_not_hold_up_the_stop(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, ready = threading.Event(), threading.Event()
    endless = Endless()
    given = 0

    def counted(asked: Asked) -> Iterator[dict[str, list[str]]]:
        nonlocal given
        for each in Endless().search(asked):
            yield each
            given += 1

    monkeypatch.setattr(endless, "search", counted)
    config = QueryConfig(
        ae_title="DICOMAI",
        host="127.0.0.1",
        port=free_port,
        nodes=(Node(name="CLIENT", ae_title="CLIENT", may=("echo", "query")),),
        max_associations=1,
    )
    serving = threading.Thread(target=answer, args=(config, endless, ready.set, stop), daemon=True)
    serving.start()
    assert ready.wait(20)
    entity = AE("CLIENT")
    entity.add_requested_context(STUDY_ROOT_FIND)
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyDescription = ""
    deaf = entity.associate("127.0.0.1", free_port, ae_title="DICOMAI")
    with monkeypatch.context() as patched:
        patched.setattr(AssociationSocket, "ready", property(lambda _: False))
        deaf.send_c_find(query, STUDY_ROOT_FIND)
        before = -1
        while given != before:  # until the network holds all that it can
            before = given
            threading.Event().wait(0.5)
        stop.set()
        serving.join(10)
        assert not serving.is_alive()
        wire = deaf.dul.socket.socket
    deaf.abort()
    wire.close()


def test_the_role_wants_a_port(sqlite_engine: Any, tmp_path: Path) -> None:
    (tmp_path / "dicomai.toml").write_text('[service]\ndata = "data"\n')
    done = CliRunner().invoke(app, ["query", "-c", str(tmp_path / "dicomai.toml")])
    assert done.exit_code == 3
    assert "query.port: there is none" in done.stderr
