"""What a node has: Orthanc and DCMTK's dcmqrscp asked, and a node that misbehaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from typer.testing import CliRunner

from dicomai.cli.main import app
from dicomai.errors import DicomaiError, InputError, RefusedError, TransientError
from dicomai.net import find as finding
from dicomai.net.find import Cut, Level, Match
from dicomai.net.node import Node

Asked = Callable[..., list[Match]]


def asked(node: Node, level: Level, **keys: str) -> list[Match]:
    return list(finding.find(node, "DICOMAI", finding.query(level, keys)))


def texts(matches: list[Match], keyword: str) -> list[str]:
    return sorted(match.text(keyword) for match in matches)


def test_studies_are_found_by_every_kind_of_key(
    pacs: Any, mueller: Any, yamada: Any, doe: Any
) -> None:
    node = pacs.node()
    every = asked(node, "study")
    assert texts(every, "StudyInstanceUID") == [mueller.uid, yamada.uid, doe.uid]
    for keys, studies in (
        ({"AccessionNumber": "A1"}, [mueller]),
        ({"StudyInstanceUID": f"{mueller.uid}\\{doe.uid}"}, [mueller, doe]),
        ({"PatientName": "Doe*"}, [doe]),
        ({"PatientID": "P?"}, [mueller, yamada, doe]),
        ({"StudyDate": "20260401-"}, [yamada, doe]),
        ({"StudyDate": "20260301-20260410"}, [mueller, yamada]),
        ({"AccessionNumber": "none"}, []),
    ):
        found = asked(node, "study", **keys)
        assert texts(found, "StudyInstanceUID") == [each.uid for each in studies], keys


def test_every_level_is_listed(pacs: Any, mueller: Any, doe: Any) -> None:
    node = pacs.node()
    assert texts(asked(node, "patient"), "PatientID") == ["P1", "P2", "P3"]
    series = asked(node, "series", StudyInstanceUID=mueller.uid)
    assert texts(series, "SeriesInstanceUID") == [mueller.series_uid(1), mueller.series_uid(2)]
    assert {match.attributes["SeriesNumber"] for match in series} == {1, 2}
    images = asked(node, "image", StudyInstanceUID=doe.uid, SeriesInstanceUID=doe.series_uid(1))
    assert texts(images, "SOPInstanceUID") == [doe.sop_uid(1, number) for number in range(1, 5)]


def test_names_are_read_and_asked_for_in_their_character_sets(
    pacs: Any, mueller: Any, yamada: Any
) -> None:
    node = pacs.node(charset_default="ISO_IR 100")
    names = {match.text("PatientID"): match.text("PatientName") for match in asked(node, "study")}
    assert names["P1"] == "Müller^Jürgen"
    assert names["P2"] == yamada.name
    (found,) = asked(node, "study", PatientName="Müller*")
    assert found.text("StudyInstanceUID") == mueller.uid


@pytest.mark.parametrize(
    ("level", "keys", "words"),
    [
        ("study", {"PatientNam": "x"}, 'No attribute has the keyword "PatientNam". "PatientName"?'),
        ("study", {"PixelData": "x"}, "PixelData (OB or OW) can't be a key"),
        ("study", {"InstanceNumber": "one"}, "InstanceNumber (IS) can't be 'one'"),
        ("study", {"StudyDate": "today"}, "StudyDate (DA) can't be 'today' in a query"),
        ("study", {"StudyDate": "2024-06-11"}, "Write a day as 20260131, days in a row as"),
        ("study", {"StudyDate": "20240601\\2024-06-11"}, "Write a day as 20260131"),
        ("study", {"StudyDate": "-"}, "Write a day as 20260131"),
        ("study", {"StudyTime": "noon-"}, "StudyTime (TM) can't be 'noon-' in a query"),
        ("series", {}, "A query for series needs StudyInstanceUID with one value"),
        ("image", {"StudyInstanceUID": "1.2"}, "needs SeriesInstanceUID with one value"),
        ("series", {"StudyInstanceUID": "1.2\\1.3"}, "needs StudyInstanceUID with one value"),
    ],
)
def test_a_query_that_cannot_be_is_refused_before_anyone_is_asked(
    level: Level, keys: dict[str, str], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        finding.query(level, keys)
    assert words in caught.value.sentence


@contextmanager
def answering(port: int, handle: Callable[[evt.Event], Any]) -> Iterator[Node]:
    """A node whose answers to C-FIND a test writes."""
    entity = AE("PACS1")
    entity.add_supported_context(finding.STUDY_ROOT_FIND)
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, handle)]
    )
    try:
        yield Node(name="PACS1", ae_title="PACS1", host="127.0.0.1", port=port)
    finally:
        server.shutdown()


def numbered(number: int) -> Dataset:
    one = Dataset()
    one.QueryRetrieveLevel = "STUDY"
    one.StudyInstanceUID = f"1.2.{number}"
    return one


def test_a_query_is_cancelled_when_it_has_as_many_matches_as_wanted(free_port: int) -> None:
    cancelled = threading.Event()

    def endless(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        number = 0
        while not event.is_cancelled:
            number += 1
            yield 0xFF00, numbered(number)
        cancelled.set()
        yield 0xFE00, None

    cut = Cut()
    with answering(free_port, endless) as node:
        wanted = finding.query("study", {})
        found = list(finding.find(node, "DICOMAI", wanted, limit=3, cut=cut))
        assert cancelled.wait(10)
    assert texts(found, "StudyInstanceUID") == ["1.2.1", "1.2.2", "1.2.3"]
    assert cut.happened


@pytest.mark.parametrize("status", [0xFE00, 0xA700])
def test_a_node_that_tells_no_more_than_some_matches_is_cut(free_port: int, status: int) -> None:
    def two(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        yield 0xFF00, numbered(1)
        yield 0xFF00, numbered(2)
        yield status, None

    cut = Cut()
    with answering(free_port, two) as node:
        found = list(finding.find(node, "DICOMAI", finding.query("study", {}), cut=cut))
        assert texts(found, "StudyInstanceUID") == ["1.2.1", "1.2.2"]
        assert cut.because == (
            "PACS1 has more than it tells in one answer when it is asked for study (status "
            f"0x{status:04X}). Raise the limit of its answers to C-FIND."
        )
        with pytest.raises(TransientError, match="has more than it tells"):  # who wants all
            asked(node, "study")


@pytest.mark.parametrize(
    ("status", "refusals", "counts"),
    [(0xA700, True, True), (0xA700, False, False), (0xFE00, True, False), (0xC001, True, False)],
)
def test_a_node_that_refuses_outright_is_cut_for_who_can_ask_for_less(
    free_port: int, status: int, *, refusals: bool, counts: bool
) -> None:
    def none(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        yield status, None

    cut = Cut(refusals=refusals)
    raises = nullcontext() if counts else pytest.raises(TransientError, match=f"0x{status:04X}")
    with answering(free_port, none) as node, raises:
        assert not list(finding.find(node, "DICOMAI", finding.query("study", {}), cut=cut))
    assert (cut.happened, cut.refused) == (counts, counts)


def test_hundreds_of_matches_come_one_by_one(free_port: int) -> None:
    sent = 0

    def many(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        nonlocal sent
        for number in range(1, 601):
            sent = number
            yield 0xFF00, numbered(number)

    with answering(free_port, many) as node:
        matches = finding.find(node, "DICOMAI", finding.query("study", {}))
        first = next(matches)
        assert first.text("StudyInstanceUID") == "1.2.1"
        assert sum(1 for _ in matches) == 599
    assert sent == 600


def test_a_status_of_failure_is_a_sentence(free_port: int) -> None:
    faults: list[tuple[int, type[DicomaiError], str]] = [
        (0xA700, TransientError, "failed to look for study (status 0xA700"),
        (0xC001, TransientError, "(status 0xC001"),
        (0xFE00, TransientError, "somebody cancelled it there"),
        (0xA900, RefusedError, "for one of another SOP class"),
        (0x0124, RefusedError, "we may not"),
    ]
    statuses = iter([status for status, _, _ in faults])
    with answering(free_port, lambda _: iter([(next(statuses), None)])) as node:
        for _, kind, words in faults:
            with pytest.raises(kind) as caught:
                asked(node, "study")
            assert words in caught.value.sentence


def test_json_of_names_can_be_read_where_the_locale_lacks_their_letters(
    free_port: int, tmp_path: Path
) -> None:
    def one(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        match = numbered(1)
        match.SpecificCharacterSet, match.PatientName = "ISO_IR 100", "Müller"
        yield 0xFF00, match

    config = tmp_path / "dicomai.toml"
    config.write_text(
        f'[[nodes]]\nname = "PACS1"\nae_title = "PACS1"\nhost = "127.0.0.1"\nport = {free_port}\n'
    )
    with answering(free_port, one):
        said = CliRunner(charset="ascii").invoke(
            app, ["find", "PACS1", "PatientName", "--json", "-c", str(config)]
        )
    assert said.exit_code == 0, said.stderr
    assert [match["PatientName"] for match in json.loads(said.stdout)] == ["Müller"]


def test_a_node_that_is_down_or_lacks_the_service_is_a_sentence(
    free_port: int, storescp: Any
) -> None:
    down = Node(name="PACS1", ae_title="PACS1", host="127.0.0.1", port=1)
    with pytest.raises(TransientError, match="PACS1 can't be reached"):
        asked(down, "study")
    deaf = Node(name="PACS1", ae_title="STORESCP", host="127.0.0.1", port=storescp.port)
    with pytest.raises(RefusedError, match=r"takes no C-FIND \(study root\) from DICOMAI"):
        asked(deaf, "study")


def test_the_command_prints_a_table_or_json(
    full_orthanc: Any, tmp_path: Path, mueller: Any, doe: Any
) -> None:
    config = tmp_path / "dicomai.toml"
    config.write_text(
        '[[nodes]]\nname = "PACS1"\nae_title = "ORTHANC"\nhost = "127.0.0.1"\n'
        f"port = {full_orthanc.port}\n"
    )

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["find", "PACS1", *arguments, "-c", str(config)])

    said = run("AccessionNumber=A1", "InstitutionName", "--json")
    assert said.exit_code == 0, said.stderr
    (match,) = json.loads(said.stdout)
    assert match["StudyInstanceUID"] == mueller.uid
    assert match["PatientName"] == "Müller^Jürgen"
    assert int(match["NumberOfStudyRelatedInstances"]) == 5
    shown = run(f"StudyInstanceUID={doe.uid}", "--level", "series")
    assert doe.series_uid(1) in shown.stdout
    assert "PACS1 has 1 such series." in shown.stdout
    assert run("--limit", "1").stderr.endswith("PACS1 has more than 1; the query was cancelled.\n")
    assert json.loads(run("AccessionNumber=none", "--json").stdout) == []
    wrong = run("PatientNam=x")
    assert wrong.exit_code == 2
    assert "PatientName" in wrong.stderr
    assert "without spaces around =" in run("PatientID", "=", "4").stderr
