"""Queries and retrievals over TLS: DCMTK's findscu asks us, Orthanc asks us and is asked."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from dicomai.dicom.dates import now, seconds
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.errors import DicomaiError
from dicomai.net import find as finding
from dicomai.net.node import Node
from dicomai.net.tls import TlsFiles
from dicomai.service.retrieve import Retriever
from dicomai.store import instances, retrievals
from dicomai.store.engine import reading, writing
from dicomai.store.retrievals import NewRetrieval
from tests.conftest import Authority


@pytest.fixture
def engine(sqlite_engine: Any) -> Any:
    """One database is enough: what is new here lies below it."""
    return sqlite_engine


def test_findscu_asks_over_tls_with_the_certificate_of_its_node(
    filled: Callable[..., Any],
    peer: Callable[[str], str],
    authority: Authority,
    tls_files: TlsFiles,
    our_query_port: int,
) -> None:
    may = ("echo", "query")
    viewer = Node(name="VIEWER", ae_title="VIEWER", may=may, tls=True, certificate="CN=viewer")
    filled(viewer, tls=tls_files)

    def findscu(*options: str | Path) -> Any:
        return subprocess.run(
            [
                *(peer("findscu"), "-S", "-aet", "VIEWER", "-aec", "DICOMAI", *map(str, options)),
                *("-k", "QueryRetrieveLevel=STUDY", "-k", "AccessionNumber=A1"),
                *("-k", "StudyInstanceUID", "127.0.0.1", str(our_query_port)),
            ],
            capture_output=True,
            text=True,
            timeout=20,
        )

    def shows(name: str) -> tuple[str | Path, ...]:
        certificate, key = authority.issue(name)
        return ("+tls", key, certificate, "+cf", authority.certificate)

    found = findscu(*shows("viewer"))
    assert found.returncode == 0, found.stderr
    assert "1.2.826.0.1.3680043.10.543.1" in found.stderr + found.stdout
    for options in (shows("another"), ("+tla", "+cf", authority.certificate)):
        refused = findscu(*options)
        assert refused.returncode != 0
        assert "Calling AE Title Not Recognized" in refused.stderr
    assert findscu().returncode != 0  # without TLS nobody answers


@pytest.mark.parametrize("how", ["get", "move"])
def test_orthanc_is_asked_and_sends_over_tls(
    site: Callable[..., Any], orthanc_over_tls: Any, tls_files: TlsFiles, mueller: Any, how: str
) -> None:
    node = orthanc_over_tls.node(tls=True, certificate="CN=orthanc", retrieve=how)
    here = site(node, tls=tls_files)
    (match,) = finding.find(
        node, "DICOMAI", finding.query("study", {"AccessionNumber": "A1"}), tls_files
    )
    assert match.text("PatientName") == "Müller^Jürgen"
    study = StudyInstanceUID(mueller.uid)
    wanted = NewRetrieval(node="PACS1", study_instance_uid=study, ageing=seconds(600))
    with writing(here.engine) as connection:
        job = retrievals.queue(connection, wanted, now()).job_id
    assert Retriever(settings=here.settings, worker=here.worker()).work_once()
    done = here.job(job)
    assert done.state == "done", done.error_sentence
    assert done.summary["found"] == "All 5 objects that PACS1 counts are here."
    with reading(here.engine) as connection:
        objects = instances.of_study(connection, study)
    assert {(each.origin, each.node) for each in objects} == {("retrieved", "PACS1")}
    wrong: tuple[tuple[Node, TlsFiles, str], ...] = (
        (replace(node, certificate="CN=other"), tls_files, "has the certificate 'CN=orthanc'"),
        (node, TlsFiles(authorities=tls_files.authorities), "tls.certificate"),
        (replace(node, tls=False, certificate=""), tls_files, "set tls = true"),
    )
    for there, files, words in wrong:
        with pytest.raises(DicomaiError) as caught:
            list(finding.find(there, "DICOMAI", finding.query("study", {}), files))
        assert words in caught.value.sentence


def test_orthanc_asks_us_and_has_us_send_over_tls(
    filled: Callable[..., Any],
    orthanc_over_tls: Any,
    tls_files: TlsFiles,
    study_files: Path,
    tmp_path: Path,
    doe: Any,
) -> None:
    may = ("echo", "store", "query")
    node = orthanc_over_tls.node(tls=True, certificate="CN=orthanc", may=may)
    here = filled(node, ae_title="ARCHIVE", tls=tls_files)
    ours = dcmread(next((study_files / doe.accession).iterdir()))
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        ours[keyword].value = generate_uid()
    ours.file_meta.MediaStorageSOPInstanceUID = ours.SOPInstanceUID
    ours.AccessionNumber = "OURS"
    ours.save_as(tmp_path / "ours.dcm")
    here.put(tmp_path / "ours.dcm")

    def rest(path: str, body: object) -> Any:
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        url = f"http://127.0.0.1:{orthanc_over_tls.http_port}{path}"
        with urllib.request.urlopen(urllib.request.Request(url, raw), timeout=30) as said:
            return json.loads(said.read() or b"null")

    asked = {"Level": "Study", "Query": {"AccessionNumber": "OUR*", "StudyInstanceUID": ""}}
    query = rest("/modalities/archive/query", asked)["ID"]
    rest(f"/queries/{query}/retrieve", "ORTHANC")
    (there,) = rest("/tools/lookup", ours.SOPInstanceUID)
    assert there["Type"] == "Instance"
