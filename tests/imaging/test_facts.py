"""What limits ask of a patient is taken from the object, and nothing is made up."""

from __future__ import annotations

import re

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.sr._concepts_dict import concepts
from pydicom.sr._snomed_dict import mapping
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian

from dicomai.dicom import anatomic_regions
from dicomai.errors import InputError
from dicomai.imaging.facts import facts_of
from dicomai.imaging.image import image_of


@pytest.mark.parametrize(
    ("age", "born", "examined", "years"),
    [
        ("054Y", "", "", 54),
        ("018M", "", "", 1.5),
        ("", "20000101", "20260101", 26),
        ("", "20000101", "", None),
        ("", "20270101", "20260101", None),
        ("54", "nonsense", "20260101", None),
        ("", "", "", None),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_the_age_comes_from_the_object(
    age: str, born: str, examined: str, years: float | None
) -> None:
    dataset = Dataset()
    dataset.PatientAge, dataset.PatientBirthDate, dataset.StudyDate = age, born, examined
    found = facts_of(dataset).age_years
    assert found == (None if years is None else pytest.approx(years, abs=0.01))


def radiograph() -> Dataset:
    dataset = Dataset()
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2"
    dataset.Modality, dataset.ViewPosition = "DX", "PA"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 4, 6, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PatientOrientation = ["L", "F"]
    dataset.PixelData = np.arange(24, dtype="<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def test_a_radiograph_that_hangs_as_usual_is_taken_as_it_is() -> None:
    source = image_of(radiograph())
    assert source.warnings == ()
    assert source.facts.view_position == "PA"
    np.testing.assert_array_equal(source.pixels, np.arange(24).reshape(4, 6))


@pytest.mark.parametrize(
    ("orientation", "sides"),
    [
        (["L", "F"], ("R", "L", "H", "F")),
        (["A", "FR"], ("P", "A", "HL", "FR")),
        (["A", "P"], None),
        (["CR", "CD"], None),  # of an animal
        (["L"], None),
        ([], None),
    ],
)
def test_a_radiograph_says_which_sides_are_at_its_edges(
    orientation: list[str], sides: tuple[str, ...] | None
) -> None:
    dataset = radiograph()
    dataset.PatientOrientation = orientation
    assert image_of(dataset).plane.sides == sides


def test_a_radiograph_that_does_not_say_how_it_hangs_is_noted() -> None:
    dataset = radiograph()
    del dataset.PatientOrientation
    (warning,) = image_of(dataset).warnings
    assert "Patient Orientation" in warning
    dataset.PatientOrientation = ["L", ""]
    assert image_of(dataset).warnings == (warning,)
    assert image_of(dataset).plane.sides is None


@pytest.mark.parametrize("orientation", [["R", "F"], ["L", "H"], ["F", "R"]])
def test_a_mirrored_radiograph_is_refused(orientation: list[str]) -> None:
    dataset = radiograph()
    dataset.PatientOrientation = orientation
    with pytest.raises(InputError, match="is turned or mirrored"):
        image_of(dataset)


def test_a_lateral_view_hangs_its_own_way() -> None:
    dataset = radiograph()
    dataset.PatientOrientation = ["A", "F"]
    assert image_of(dataset).warnings == ()


def test_a_lateral_view_that_does_not_say_so_is_known_by_its_orientation() -> None:
    dataset = radiograph()
    dataset.ViewPosition = ""
    assert image_of(dataset).facts.view_position == ""
    dataset.PatientOrientation = ["P", "F"]
    assert image_of(dataset).facts.view_position == "LATERAL"
    dataset.ViewPosition = "LL"
    assert image_of(dataset).facts.view_position == "LL"


@pytest.mark.parametrize(
    ("concept", "older", "position"),
    [
        (codes.cid4010.AnteroPosterior, "R-10206", "AP"),
        (codes.cid4010.PosteroAnterior, "R-10214", "PA"),
        (codes.cid4010.LateralProjection, "R-102CD", "LATERAL"),
        (codes.cid4010.LeftLateral, "R-10236", "LL"),
        (codes.cid4010.AnteroPosteriorOblique, "R-10208", "OBLIQUE"),
        (codes.cid4014.MedioLateralObliqueProjection, "R-10226", "MLO"),
        (codes.cid4014.CranioCaudal, "R-10242", "CC"),
        (codes.cid4010.Frontal, "R-10202", ""),
    ],
)
def test_a_view_that_only_its_code_tells_is_known(concept: Code, older: str, position: str) -> None:
    dataset = radiograph()
    del dataset.ViewPosition
    for value, scheme in ((concept.value, "SCT"), (older, "SRT"), (older, "SNM3")):
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator = value, scheme
        dataset.ViewCodeSequence = [code]
        assert image_of(dataset).facts.view_position == position
    code.CodingSchemeDesignator = "99LOCAL"
    assert image_of(dataset).facts.view_position == ""
    dataset.ViewPosition = "PA"
    assert image_of(dataset).facts.view_position == "PA"


def _codes(*values: str, scheme: str = "SCT") -> list[Dataset]:
    made = []
    for value in values:
        made.append(Dataset())
        made[-1].CodeValue, made[-1].CodingSchemeDesignator = value, scheme
    return made


def _frames(*regions: str) -> list[Dataset]:
    """Frame Anatomy of frames, some of which say nothing."""
    made = []
    for region in regions:
        anatomy, groups = Dataset(), Dataset()
        anatomy.AnatomicRegionSequence = _codes(region) if region else []
        groups.FrameAnatomySequence = [anatomy]
        made.append(groups)
    return made


def test_each_code_of_a_region_is_that_of_the_dictionary() -> None:
    of_ct = {value for found in concepts["SCT"].values() for value in found}
    of_rt = mapping["SRT"]
    for part, *values in anatomic_regions._PARTS:
        assert re.fullmatch("[A-Z0-9]{1,16}", part)
        today = {value for value in values if "-" not in value}
        assert today & of_ct
        # As earlier editions of the table had them; the dictionary gives no code of today.
        for value in set(values) - today - {"T-9200B", "T-45526", "T-AB000"}:
            assert of_rt[value] in today


def test_each_common_region_has_its_term() -> None:
    # As DCMTK has it of PS3.16-2023b (dcmsr/libcmr/cid4031e.cc).
    for term, name in {
        "ABDOMEN": "Abdomen",
        "ABDOMENPELVIS": "AbdomenAndPelvis",
        "BREAST": "Breast",
        "CHEST": "Chest",
        "CHESTABDOMEN": "ChestAndAbdomen",
        "CHESTABDPELVIS": "ChestAbdomenAndPelvis",
        "CSPINE": "CervicalSpine",
        "HEAD": "Head",
        "HEADNECK": "HeadAndNeck",
        "HIP": "HipJoint",
        "JAW": "JawRegion",
        "LOWERLEG": "LowerLeg",
        "LSSPINE": "LumboSacralSpine",
        "MANDIBLE": "Mandible",
        "NECKCHESTABDPELV": "NeckChestAbdomenAndPelvis",
        "PELVIS": "Pelvis",
        "PELVISLOWEXTREMT": "PelvisAndLowerExtremities",
        "PROSTATE": "Prostate",
        "SSPINE": "Sacrum",
        "UPRURINARYTRACT": "UpperUrinaryTract",
        "WHOLEBODY": "EntireBody",
        "WRIST": "WristJoint",
    }.items():
        assert anatomic_regions.body_part(getattr(codes.cid4031, name).value, "SCT") == term


@pytest.mark.parametrize(
    ("value", "scheme", "part"),
    [
        (codes.cid4031.Chest.value, "SCT", "CHEST"),
        ("51185008", "SCT", "CHEST"),
        ("T-D3000", "SRT", "CHEST"),
        ("T-D3000", "SNM3", "CHEST"),
        ("T-D4000", "99SDM", "ABDOMEN"),
        ("T-04000", "SRT", "BREAST"),
        ("T-D3000", "SCT", ""),
        ("51185008", "SRT", ""),
        ("51185008", "99LOCAL", ""),
        ("", "", ""),
    ],
)
def test_a_part_that_only_its_code_tells_is_known(value: str, scheme: str, part: str) -> None:
    dataset = radiograph()
    dataset.AnatomicRegionSequence = _codes(value, scheme=scheme)
    assert image_of(dataset).facts.body_part == part
    dataset.BodyPartExamined = ""
    assert image_of(dataset).facts.body_part == part
    dataset.BodyPartExamined = "HAND"
    assert image_of(dataset).facts.body_part == "HAND"


def test_a_code_without_a_value_is_none() -> None:
    dataset = Dataset()
    dataset.AnatomicRegionSequence = _codes("51185008", "")
    assert facts_of(dataset).body_part == "CHEST"


@pytest.mark.parametrize(
    ("regions", "part"),
    [
        (("51185008", "816094009", ""), "CHEST"),
        (("51185008", "113345001"), ""),
        (("51185008", "1"), ""),
        (("", ""), ""),
    ],
)
def test_the_part_of_an_enhanced_object_is_that_of_all_its_frames(
    regions: tuple[str, ...], part: str
) -> None:
    dataset = Dataset()
    dataset.PerFrameFunctionalGroupsSequence = _frames(*regions)
    assert facts_of(dataset).body_part == part
    dataset.SharedFunctionalGroupsSequence = _frames("69536005")
    assert facts_of(dataset).body_part == ("" if part or any(regions) else "HEAD")


def test_an_object_that_names_two_parts_says_so() -> None:
    dataset = radiograph()
    dataset.BodyPartExamined = "CHEST"
    for value, told in (("T-D3000", False), ("T-D8700", True), ("T-00000", False)):
        dataset.AnatomicRegionSequence = _codes(value, scheme="SRT")
        assert [
            "CHEST as Body Part Examined and HAND as Anatomic" in each
            for each in image_of(dataset).warnings
        ] == [True] * told
    dataset.AnatomicRegionSequence = _codes("T-D8700", scheme="SRT")
    for other in ("THORAX HAND", "PORT CHEST", ""):  # no defined term, so nobody can tell
        dataset.BodyPartExamined = other
        assert image_of(dataset).warnings == ()
    dataset.BodyPartExamined = "THORAX"
    dataset.AnatomicRegionSequence = _codes("51185008")
    assert image_of(dataset).warnings == ()


@pytest.mark.parametrize(("vr", "value"), [("LO", b"CHEST "), ("UN", b"cut of")])
def test_a_region_that_can_not_be_read_says_nothing(vr: str, value: bytes) -> None:
    dataset = radiograph()
    tag = Tag("AnatomicRegionSequence")
    dataset._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True, True)
    assert image_of(dataset).facts.body_part == ""


@pytest.mark.parametrize("orientation", [["R", "H"], ["L", "H"], ["RP", "H"]])
@pytest.mark.parametrize("part", ["HAND", "WRIST", "FINGER", "FOREARM"])
def test_a_hand_hangs_with_its_fingers_up(orientation: list[str], part: str) -> None:
    dataset = radiograph()
    dataset.PatientOrientation, dataset.BodyPartExamined = orientation, part
    (warning,) = image_of(dataset).warnings
    assert warning == (
        f"The image is hung {orientation[0]}\\H (Patient Orientation); the model was given it as "
        "it is."
    )
    for other in ("CHEST", "ABDOMEN", "SHOULDER", ""):
        dataset.BodyPartExamined = other
        with pytest.raises(InputError, match="is turned or mirrored"):
            image_of(dataset)
    dataset.AnatomicRegionSequence = _codes("T-D8700", scheme="SRT")
    assert image_of(dataset).facts.body_part == "HAND"


@pytest.mark.parametrize(
    "orientation", [["L", "P"], ["A", "H"], ["F", "A"], ["P", "R"], ["X", "F"]]
)
def test_what_hangs_neither_frontally_nor_laterally_is_noted(orientation: list[str]) -> None:
    dataset = radiograph()
    dataset.PatientOrientation = orientation
    (warning,) = image_of(dataset).warnings
    assert warning.startswith(f"The image is hung {orientation[0]}\\{orientation[1]} (Patient")


@pytest.mark.parametrize("orientation", [["A", "R"], ["P", "L"], ["A", "FR"], ["P", "FL"]])
def test_a_mammogram_hangs_its_own_way(orientation: list[str]) -> None:
    dataset = radiograph()
    dataset.Modality, dataset.PatientOrientation = "MG", orientation
    assert image_of(dataset).warnings == ()


@pytest.mark.parametrize(
    ("photometric", "sign", "dark"),
    [
        ("MONOCHROME2", 1, True),
        ("MONOCHROME2", -1, False),
        ("MONOCHROME1", -1, True),
        ("MONOCHROME1", 1, False),
    ],
)
def test_an_image_in_which_bone_is_dark_is_noted(photometric: str, sign: int, dark: bool) -> None:
    dataset = radiograph()
    dataset.PhotometricInterpretation = photometric
    plain = image_of(dataset)
    dataset.PixelIntensityRelationshipSign = sign
    source = image_of(dataset)
    np.testing.assert_array_equal(source.pixels, plain.pixels)
    assert [f"{photometric} with Pixel Intensity" in each for each in source.warnings] == [
        True
    ] * dark


def test_padding_of_an_inverted_radiograph_stays_dark() -> None:
    dataset = radiograph()
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.PixelPaddingValue = 0
    pixels = image_of(dataset).pixels
    assert pixels[0, 0] == pixels.min() == 1
    assert pixels[0, 1] == pixels.max() == 23


@pytest.mark.parametrize(
    "keyword",
    [
        "ViewCodeSequence",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
    ],
)
@pytest.mark.parametrize(("vr", "value"), [("LO", b"PA"), ("US", b"PA"), ("UN", b"cut of")])
def test_a_sequence_that_is_none_is_named(keyword: str, vr: str, value: bytes) -> None:
    dataset = radiograph()
    dataset.ViewPosition = ""
    tag = Tag(keyword)
    dataset._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True, True)
    with pytest.raises(InputError, match=f"{keyword} (is no sequence|can't be read)"):
        image_of(dataset)
