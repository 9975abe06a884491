"""`dicomai route test`: which routes would match a folder, what would be chosen, why not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from dicomai.routing.condition import parse
from dicomai.routing.matching import Matched, Unmatched
from dicomai.routing.route import Route
from dicomai.routing.selection import ModelInputs, parse_input
from dicomai.service.received import Reading
from dicomai.service.route_test import StudyExplained, explain

MakeCT = Callable[..., Dataset]
Write = Callable[..., Path]
MODELS = {
    "chest-ct-lungs": ModelInputs(
        package_sha256="f" * 64,
        inputs=(parse_input("ct", "volume", ["Modality = CT"], ["SliceThickness"]),),
    )
}
ROUTES = [
    Route(name="lungs", model="chest-ct-lungs", when=(parse("BodyPartExamined = CHEST"),)),
    Route(name="from-ct1", model="chest-ct-lungs", when=(parse("calling_node = CT1"),)),
    Route(name="absent", model="chest-ct-lung"),
]


@pytest.fixture
def folder(make_ct: MakeCT, write: Write, tmp_path: Path) -> Path:
    for number in range(1, 4):
        thick = make_ct(series="1.2.3.1", number=number, SliceThickness=5.0)
        thin = make_ct(series="1.2.3.2", number=number, SliceThickness=1.0, SeriesNumber=2)
        write(thick, tmp_path / f"thick{number}.dcm")
        write(thin, tmp_path / f"thin{number}.dcm")
    (tmp_path / "notes.txt").write_text("no DICOM")
    return tmp_path


def _explain(folder: Path, calling_node: str = "") -> tuple[StudyExplained, list[str]]:
    found = explain(
        [folder],
        ROUTES,
        MODELS,
        reading=Reading(),
        today=date(2026, 11, 21),
        calling_node=calling_node,
    )
    (study,) = found.studies
    return study, [f"{each.path.name}: {each.sentence}" for each in found.unreadable]


def test_a_folder_is_explained_route_by_route(folder: Path) -> None:
    study, unreadable = _explain(folder)

    lungs, from_ct1, absent = (each.outcome for each in study.routes)
    assert isinstance(lungs, Matched)
    assert lungs.because == "chest-ct-lungs gets ct: series 2 (1.2.3.2)"
    assert "comes after: by SliceThickness it has 5" in lungs.choices[0].runners_up[0]
    assert isinstance(from_ct1, Matched)
    assert isinstance(absent, Unmatched)
    assert absent.because == "no package chest-ct-lung is installed"
    assert (study.objects, study.held) == (6, "")
    assert unreadable == [
        "notes.txt: It is no DICOM file: it lacks the preamble and DICM (PS3.10 7.1)."
    ]


def test_a_calling_node_can_be_assumed(folder: Path) -> None:
    study, _ = _explain(folder, calling_node="CT2")

    outcome = study.routes[1].outcome
    assert isinstance(outcome, Unmatched)
    assert '"calling_node = CT1", and it has CT2' in outcome.because


def test_two_patients_would_be_held(folder: Path, make_ct: MakeCT, write: Write) -> None:
    write(make_ct(number=9, PatientID="P2"), folder / "other.dcm")

    study, _ = _explain(folder)

    assert study.held == "its objects belong to 2 patients"


def _regions(*values: str, scheme: str = "SCT") -> list[Dataset]:
    made = []
    for value in values:
        region = Dataset()
        region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = value, scheme, "There"
        made.append(region)
    return made


def _frame_anatomy(*values: str) -> list[Dataset]:
    made = []
    for value in values:
        anatomy, frame = Dataset(), Dataset()
        anatomy.AnatomicRegionSequence = _regions(value)
        frame.FrameAnatomySequence = [anatomy]
        made.append(frame)
    return made


@pytest.mark.parametrize(
    ("said", "told"),
    [
        # Anatomic Region Sequence alone, in SNOMED CT of today, of before, and in SNOMED RT.
        ({"AnatomicRegionSequence": _regions("816094009")}, ""),
        ({"AnatomicRegionSequence": _regions("51185008")}, ""),
        ({"AnatomicRegionSequence": _regions("T-D3000", scheme="SRT")}, ""),
        (
            {"AnatomicRegionSequence": _regions("T-D4000", scheme="SRT")},
            "it has ABDOMEN (as its Anatomic Region Sequence says).",
        ),
        (
            {"AnatomicRegionSequence": _regions("7", scheme="99LOCAL")},
            "it has no BodyPartExamined (its Anatomic Region Sequence says There (7, 99LOCAL)).",
        ),
        ({"AnatomicRegionSequence": []}, "it has no BodyPartExamined."),
        # A meaning without a value is no code.
        ({"AnatomicRegionSequence": _regions("51185008") + _regions("")}, ""),
        ({"AnatomicRegionSequence": _regions("")}, "it has no BodyPartExamined."),
        # Of frames: shared, of each, and of several parts.
        ({"SharedFunctionalGroupsSequence": _frame_anatomy("51185008")}, ""),
        ({"PerFrameFunctionalGroupsSequence": _frame_anatomy("51185008", "816094009")}, ""),
        (
            {"PerFrameFunctionalGroupsSequence": _frame_anatomy("51185008", "113345001")},
            "no BodyPartExamined (its Anatomic Region Sequence says CHEST, ABDOMEN).",
        ),
        # Where both are said, what is written counts.
        ({"BodyPartExamined": "CHEST", "AnatomicRegionSequence": _regions("113345001")}, ""),
        (
            {"BodyPartExamined": "ABDOMEN", "AnatomicRegionSequence": _regions("51185008")},
            "it has ABDOMEN (its Anatomic Region Sequence says CHEST).",
        ),
        ({"BodyPartExamined": "ABDOMEN"}, "it has ABDOMEN."),
    ],
)
def test_a_route_knows_the_part_of_the_body_by_its_code(
    make_ct: MakeCT, write: Write, tmp_path: Path, said: dict[str, object], told: str
) -> None:
    made = {"BodyPartExamined": "", **said}
    for number in range(1, 4):
        write(make_ct(number=number, **made), tmp_path / f"{number}.dcm")
    study, unreadable = _explain(tmp_path)
    assert unreadable == []
    (lungs, *_) = study.routes
    outcome = lungs.outcome
    if not told:
        assert isinstance(outcome, Matched)
        return
    assert isinstance(outcome, Unmatched)
    assert outcome.because.endswith(told.rstrip("."))
