"""What any viewer shows: pictures, key images, marks; each lies where the findings are."""

from __future__ import annotations

import copy
import io
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian

from dicomai.results.gate import GateError, check, check_with_dciodvfy

ALL = ("SEG", "SR", "SC", "KO", "PR")


def _read(raw: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(raw))


def _run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, timeout=60, check=False
    )
    return f"{done.stdout}{done.stderr}rc={done.returncode}"


@pytest.fixture(scope="module")
def made(study: Any, found: Any) -> dict[str, list[bytes]]:
    """Everything that can be made of everything that can be found."""
    result: dict[str, list[bytes]] = study.by_modality(found.everything(study), ALL)
    return result


def test_without_being_asked_for_there_are_a_seg_and_a_report(study: Any, found: Any) -> None:
    assert [_read(raw).Modality for raw in study.files(found.everything(study))] == ["SEG", "SR"]


def test_each_kind_has_a_series_of_its_own_behind_its_source(made: dict[str, list[bytes]]) -> None:
    numbers = {kind: {_read(raw).SeriesNumber for raw in raws} for kind, raws in made.items()}
    assert numbers == {"SEG": {3001}, "SR": {3002}, "OT": {3003}, "KO": {3004}, "PR": {3005}}
    assert [_read(raw).InstanceNumber for raw in made["OT"]] == list(range(1, len(made["OT"]) + 1))


def test_the_report_refers_to_every_other_object(made: dict[str, list[bytes]]) -> None:
    report = _read(made["SR"][0])
    others = {_read(raw).SOPInstanceUID for kind in ("OT", "KO", "PR") for raw in made[kind]}
    (container,) = [
        item
        for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "ANALYSIS-OBJECTS"
    ]
    tied = {each.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for each in (
        container.ContentSequence
    )}  # fmt: skip
    assert tied == others


def test_a_picture_says_that_words_are_burnt_in_and_which_image_it_shows(
    study: Any, made: dict[str, list[bytes]]
) -> None:
    axial, coronal, *detections = [_read(raw) for raw in made["OT"]]
    assert len(detections) == 3
    for each in (axial, coronal, *detections):
        assert (each.BurnedInAnnotation, each.ConversionType) == ("YES", "WSD")
        assert each.pixel_array.shape == (each.Rows, each.Columns, 3)
    (shown,) = axial.SourceImageSequence
    # The slice where both lungs together are largest.
    assert shown.ReferencedSOPInstanceUID == study.headers[3].SOPInstanceUID
    assert len(coronal.SourceImageSequence) == len(study.headers)
    assert (axial.PatientOrientation, coronal.PatientOrientation) == (["L", "P"], ["L", "F"])


def test_key_images_are_those_that_show_most_of_what_was_found(
    study: Any, found: Any, made: dict[str, list[bytes]]
) -> None:
    (keys,) = (_read(raw) for raw in made["KO"])
    picked = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in keys.ContentSequence
        if item.ValueType == "IMAGE"
    ]
    # Right lung from slice 1, left lung from slice 3, nodules at 4.5, 6.0 and from 2 to 4.
    assert picked == [study.headers[k].SOPInstanceUID for k in (1, 3, 4, 6)]
    assert "KO" not in study.by_modality(found.nothing(study), ALL)


def _inside(lines: list[npt.NDArray[np.float64]], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the pixels whose centre an odd number of closed lines encloses: rays to the right."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    odd = np.zeros(shape, bool)
    for line in lines:
        for (x1, y1), (x2, y2) in pairwise(line):
            if y1 != y2:
                crosses = (np.minimum(y1, y2) <= y) & (y < np.maximum(y1, y2))
                odd ^= crosses & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return odd


@pytest.mark.parametrize("orientation", ["axial", "oblique"])
def test_marks_enclose_the_very_pixels_of_each_mask(
    study_lying: Any, found: Any, orientation: str
) -> None:
    lying = study_lying(orientation)
    findings = found.everything(lying)
    (state,) = (_read(raw) for raw in lying.by_modality(findings, ("SR", "PR"))["PR"])
    drawn: dict[tuple[str, str], list[npt.NDArray[np.float64]]] = {}
    for item in state.GraphicAnnotationSequence:
        for each in item.get("GraphicObjectSequence", ()):
            key = (item.ReferencedImageSequence[0].ReferencedSOPInstanceUID, item.GraphicLayer)
            line = np.array(each.GraphicData).reshape(-1, 2)
            drawn.setdefault(key, []).append(line)
    for layer, mask in (
        ("FINDING1", findings.segments[0].mask),
        ("FINDING2", findings.segments[1].mask),
        ("FINDING4", findings.detections[0].mask),
    ):
        for header, plane in zip(lying.headers, mask, strict=True):
            lines = drawn.get((header.SOPInstanceUID, layer), [])
            np.testing.assert_array_equal(_inside(lines, plane.shape), plane)


def test_a_ball_is_a_circle_in_millimetres_on_the_slices_that_it_reaches(
    study: Any, found: Any
) -> None:
    findings = replace(
        found.nothing(study), detections=(found.ball(study, "nodule 1", (4.0, 9.0, 21.0)),)
    )
    (state,) = (_read(raw) for raw in study.by_modality(findings, ("SR", "PR"))["PR"])
    marks = [each for each in state.GraphicAnnotationSequence if "GraphicObjectSequence" in each]
    by_uid = {each.SOPInstanceUID: k for k, each in enumerate(study.headers)}
    slices = [by_uid[each.ReferencedImageSequence[0].ReferencedSOPInstanceUID] for each in marks]
    assert slices == [4]  # 6 mm across, slices 3 mm apart: the next ones only touch it
    (ellipse,) = marks[0].GraphicObjectSequence
    points = np.array(ellipse.GraphicData).reshape(4, 2)
    np.testing.assert_allclose(points.mean(axis=0), [21.5, 9.5], atol=1e-4)
    apart = np.abs(points - points.mean(axis=0)) * [0.7, 0.8]  # between columns, between rows
    np.testing.assert_allclose(apart.max(axis=1), 3.0, atol=1e-4)


def test_states_are_parted_where_images_have_another_rescale(study: Any, found: Any) -> None:
    headers = copy.deepcopy(study.headers)
    for k, header in enumerate(headers):
        header.RescaleSlope, header.RescaleIntercept = ("2" if k > 4 else "1"), "0"
    other = replace(study, headers=headers)
    states = [_read(raw) for raw in other.by_modality(found.everything(other), ALL)["PR"]]
    assert [each.RescaleSlope for each in states] == [1, 2]
    assert [each.InstanceNumber for each in states] == [1, 2]


def test_words_stand_at_the_upper_right_of_what_they_name(made: dict[str, list[bytes]]) -> None:
    (state,) = map(_read, made["PR"])
    *marks, _ = state.GraphicAnnotationSequence  # the last stands on all images
    for mark in marks:
        points = np.concatenate(
            [np.reshape(each.GraphicData, (-1, 2)) for each in mark.GraphicObjectSequence]
        )
        (words,) = mark.TextObjectSequence
        assert words.AnchorPointAnnotationUnits == "PIXEL"
        assert words.AnchorPoint == pytest.approx([points[:, 0].max(), points[:, 1].min()])


def test_every_layer_that_marks_and_words_stand_on_is_declared(
    made: dict[str, list[bytes]], xray: Any, found: Any
) -> None:
    on_xray = xray.by_modality(found.on_xray(xray), ALL)
    for state in map(_read, [*made["PR"], *on_xray["PR"]]):
        declared = [each.GraphicLayer for each in state.GraphicLayerSequence]
        assert len(declared) == len(set(declared))
        assert {each.GraphicLayer for each in state.GraphicAnnotationSequence} == set(declared)
        orders = [each.GraphicLayerOrder for each in state.GraphicLayerSequence]
        assert orders == list(range(1, len(declared) + 1))


def test_dark_stays_dark_on_images_whose_low_values_are_bright(study: Any, found: Any) -> None:
    headers = copy.deepcopy(study.headers)
    for k, header in enumerate(headers):
        header.PhotometricInterpretation = "MONOCHROME1" if k > 4 else "MONOCHROME2"
    other = replace(study, headers=headers)
    shapes = {
        image.ReferencedSOPInstanceUID: state.PresentationLUTShape
        for state in map(_read, other.by_modality(found.everything(other), ALL)["PR"])
        for image in state.ReferencedSeriesSequence[0].ReferencedImageSequence
    }
    bright = {each.SOPInstanceUID for each in headers[5:]}
    assert set(shapes.values()) == {"INVERSE", "IDENTITY"}
    assert shapes == {uid: "INVERSE" if uid in bright else "IDENTITY" for uid in shapes}


def test_each_image_is_shown_in_its_own_window(
    peer: Callable[[str], str], study: Any, found: Any
) -> None:
    headers = copy.deepcopy(study.headers)
    for k, header in enumerate(headers):
        header.WindowCenter, header.WindowWidth = (40, 400) if k in (2, 5) else (-600, 1500)
    source = replace(study, headers=headers)
    findings = found.everything(source)
    files = source.made_anew(findings, ("SEG", "SR", "PR"))
    check(files, findings, headers, wanted=("SEG", "SR", "PR"))
    check_with_dciodvfy(files, peer("dciodvfy"))
    (state,) = (each for each in map(_read, files) if each.Modality == "PR")
    windows = {
        str(one.ReferencedSOPInstanceUID): (each.WindowCenter, each.WindowWidth)
        for each in state.SoftcopyVOILUTSequence
        for one in each.ReferencedImageSequence
    }
    marked = state.ReferencedSeriesSequence[0].ReferencedImageSequence
    assert windows == {
        header.SOPInstanceUID: (header.WindowCenter, header.WindowWidth)
        for header in headers
        if header.SOPInstanceUID in {each.ReferencedSOPInstanceUID for each in marked}
    }
    for change, words in (
        (lambda _, other: setattr(other, "WindowCenter", 50), "its window is not that of"),
        (lambda _, other: delattr(other, "ReferencedImageSequence"), "several windows"),
    ):
        changed = copy.deepcopy(state)
        change(*changed.SoftcopyVOILUTSequence)
        out = io.BytesIO()
        changed.save_as(out)
        changed_files = [raw for raw in files if _read(raw).Modality != "PR"] + [out.getvalue()]
        with pytest.raises(GateError, match=words):
            check(changed_files, findings, headers, wanted=("SEG", "SR", "PR"))


def _table(*words: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(words), 0, 16]
    item.LUTData = np.array(words, "<u2").tobytes()
    return item


def _state_on(xray: Any, found: Any, **said: object) -> tuple[Dataset, Callable[[Dataset], None]]:
    """Return the marks on an X-ray that says this too, and what holds others against it."""
    image = copy.deepcopy(xray.headers[0])
    for keyword, value in said.items():
        setattr(image, keyword, value)
    objects, boxed = ("SEG", "SR", "PR"), found.on_xray(xray)
    files = replace(xray, headers=[image]).made_anew(boxed, objects)
    check(files, boxed, [image], wanted=objects)

    def held(state: Dataset) -> None:
        out = io.BytesIO()
        state.save_as(out)
        check([out.getvalue(), files[-1]], boxed, [image], wanted=objects)

    return _read(files[0]), held


def test_marks_are_shown_in_the_greys_and_proportions_of_the_image(xray: Any, found: Any) -> None:
    state, held = _state_on(
        xray,
        found,
        ModalityLUTSequence=[_table(0, 10, 20, 65535)],
        VOILUTSequence=[_table(0, 5, 6, 7)],
        PixelAspectRatio=["2", "1"],
    )
    (modality,) = state.ModalityLUTSequence
    (voi,) = state.SoftcopyVOILUTSequence[0].VOILUTSequence
    assert (modality.LUTDescriptor, modality.LUTData) == ([4, 0, 16], b"\0\0\n\0\x14\0\xff\xff")
    assert (voi.LUTDescriptor, voi.LUTData) == ([4, 0, 16], b"\0\0\5\0\6\0\7\0")
    area = state.DisplayedAreaSelectionSequence[0]
    assert area.PresentationPixelAspectRatio == [2, 1]
    assert "RescaleSlope" not in state
    for holder, keyword in (
        (state, "ModalityLUTSequence"),
        (state, "SoftcopyVOILUTSequence"),
        (area, "PresentationPixelAspectRatio"),
    ):
        kept = holder[keyword]
        del holder[keyword]
        with pytest.raises(GateError, match="rule of geometry"):
            held(state)
        holder.add(kept)
    held(state)


def test_a_table_that_begins_below_nought_does_so_in_the_marks(xray: Any, found: Any) -> None:
    table = _table(0, 5, 6, 7)
    table.add_new("LUTDescriptor", "SS", [4, -2, 16])
    state, held = _state_on(xray, found, PixelRepresentation=1, VOILUTSequence=[table])
    (voi,) = state.SoftcopyVOILUTSequence[0].VOILUTSequence
    assert (voi["LUTDescriptor"].VR, list(voi.LUTDescriptor)) == ("SS", [4, -2, 16])
    voi.add_new("LUTDescriptor", "SS", [4, -1, 16])
    with pytest.raises(GateError, match="rule of geometry"):
        held(state)


def test_marks_are_shown_in_the_window_of_the_image(xray: Any, found: Any) -> None:
    state, held = _state_on(
        xray, found, WindowCenter=["40", "5"], WindowWidth=["400", "6"], VOILUTFunction="SIGMOID"
    )
    (level,) = state.SoftcopyVOILUTSequence
    assert (level.WindowCenter, level.WindowWidth, level.VOILUTFunction) == (40, 400, "SIGMOID")
    level.WindowCenter = 5000
    with pytest.raises(GateError, match="its window is not that of"):
        held(state)


def test_marks_are_shown_as_the_only_frame_of_a_mammogram_says(xray: Any, found: Any) -> None:
    shared, frame, levels, values, measures = (Dataset() for _ in range(5))
    levels.WindowCenter, levels.WindowWidth = 2000, 1000
    values.RescaleIntercept, values.RescaleSlope, values.RescaleType = 0, 2, "US"
    measures.PixelSpacing = [0.1, 0.05]
    frame.FrameVOILUTSequence = [levels]
    shared.PixelValueTransformationSequence = [values]
    shared.PixelMeasuresSequence = [measures]
    state, held = _state_on(
        xray,
        found,
        Modality="MG",
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[frame],
    )
    (level,) = state.SoftcopyVOILUTSequence
    (area,) = state.DisplayedAreaSelectionSequence
    assert (level.WindowCenter, level.WindowWidth, state.RescaleSlope) == (2000, 1000, 2)
    assert area.PresentationPixelSpacing == [0.1, 0.05]
    level.WindowCenter = 5000
    with pytest.raises(GateError, match="its window is not that of"):
        held(state)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("sigmoid", "SIGMOID"),
        (["LINEAR_EXACT", "SIGMOID"], "LINEAR_EXACT"),
        (["LINEAR", "SIGMOID"], None),
        ("linear", None),
        ("IDENTITY", None),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR CS:UserWarning")  # pydicom's, rightly
def test_a_window_spelt_oddly_goes_by_its_first_function_or_is_linear(
    xray: Any, found: Any, said: object, told: str | None
) -> None:
    state, _ = _state_on(xray, found, WindowCenter=40, WindowWidth=400, VOILUTFunction=said)
    assert state.SoftcopyVOILUTSequence[0].get("VOILUTFunction") == told


@pytest.mark.parametrize(
    ("centre", "width", "told"),
    [
        (b"40", b"0", None),
        (b"40", b"-400", None),
        (b"abc", b"400", None),
        (b"40", b"NaN", None),
        (b"0", b"400", (0, 400, None)),
        (b"0.5", b"0.25", (0.5, 0.25, "LINEAR_EXACT")),
        (b"40.333333333333333333", b"400.00000000000000001", (40.3333333333333, 400, None)),
    ],
)
def test_a_window_that_can_not_be_keeps_no_result_back(
    peer: Callable[[str], str],
    xray: Any,
    found: Any,
    centre: bytes,
    width: bytes,
    told: tuple[float, float, str | None] | None,
) -> None:
    image = copy.deepcopy(xray.headers[0])
    for keyword, value in (
        ("WindowCenter", centre),
        ("WindowWidth", width),
        ("RescaleSlope", b"1.00000000000000000001"),
        ("RescaleIntercept", b"-0.33333333333333333333"),
        ("PixelSpacing", b"0.33333333333333333333\\0.33333333333333333333"),
    ):
        tag = Tag(keyword)
        image._dict[tag] = RawDataElement(tag, "DS", len(value), value, 0, False, True, True)
    source = replace(xray, headers=[image])
    findings = found.on_xray(source)
    files = source.made_anew(findings, ("SR", "PR"))
    check(files, findings, [image], wanted=("SR", "PR"))
    check_with_dciodvfy(files, peer("dciodvfy"))
    (state,) = (each for each in map(_read, files) if each.Modality == "PR")
    levels = state.get("SoftcopyVOILUTSequence")
    assert (levels is None) == (told is None)
    if told is not None:
        level = levels[0]
        assert (level.WindowCenter, level.WindowWidth, level.get("VOILUTFunction")) == told


@pytest.mark.parametrize("ratio", [["0", "0"], ["1", "0"], "2"])
def test_pixels_of_no_proportions_are_square(xray: Any, found: Any, ratio: object) -> None:
    state, _ = _state_on(xray, found, PixelAspectRatio=ratio)
    area = state.DisplayedAreaSelectionSequence[0]
    assert area.PresentationPixelAspectRatio == [1, 1]


@pytest.mark.parametrize("descriptor", [[4, 0], 4])
def test_a_table_that_is_not_whole_is_left_out(xray: Any, found: Any, descriptor: object) -> None:
    table = _table(0, 5, 6, 7)
    table.LUTDescriptor = descriptor
    state, _ = _state_on(xray, found, VOILUTSequence=[table], ModalityLUTSequence=[table])
    assert "SoftcopyVOILUTSequence" not in state
    assert "ModalityLUTSequence" not in state


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422", "PALETTE COLOR"])
def test_an_image_in_colour_gets_no_state_for_shades_of_grey(
    xray: Any, found: Any, photometric: str
) -> None:
    image = copy.deepcopy(xray.headers[0])
    image.PhotometricInterpretation = photometric
    objects, boxed = ("SEG", "SR", "PR"), found.on_xray(xray)
    files = replace(xray, headers=[image]).made_anew(boxed, objects)
    assert [_read(raw).Modality for raw in files] == ["SR"]
    check(files, boxed, [image], wanted=objects)


def test_a_box_on_an_xray_is_marked_where_it_was_found(xray: Any, found: Any) -> None:
    made = xray.by_modality(found.on_xray(xray), ALL)
    assert sorted(made) == ["KO", "OT", "PR", "SR"]
    assert _read(made["OT"][0]).PatientOrientation == ["L", "F"]
    (state,) = (_read(raw) for raw in made["PR"])
    box = np.array(state.GraphicAnnotationSequence[0].GraphicObjectSequence[0].GraphicData)
    assert (box[0::2].min(), box[1::2].min(), box[0::2].max(), box[1::2].max()) == (8, 5, 21, 10)


def test_dciodvfy_finds_no_error(
    peer: Callable[[str], str], xray: Any, found: Any, made: dict[str, list[bytes]], tmp_path: Path
) -> None:
    on_xray = xray.by_modality(found.on_xray(xray), ALL)
    for name, raws in [*made.items(), *((f"xray-{each}", raw) for each, raw in on_xray.items())]:
        path = tmp_path / f"{name}.dcm"
        path.write_bytes(raws[0])
        said = _run(peer("dciodvfy"), "-new", path)
        assert not [line for line in said.splitlines() if line.startswith("Error")], (name, said)


def test_dcmtk_reads_the_key_images_and_shows_an_image_with_its_marks(
    peer: Callable[[str], str], study: Any, made: dict[str, list[bytes]], tmp_path: Path
) -> None:
    (tmp_path / "ko.dcm").write_bytes(made["KO"][0])
    said = _run(peer("dsrdump"), "+Pl", tmp_path / "ko.dcm")
    assert "Key Object Selection Document" in said
    assert "E: " not in said
    (tmp_path / "pr.dcm").write_bytes(made["PR"][0])
    image = copy.deepcopy(study.headers[3])
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation, image.SamplesPerPixel = 15, 1, 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.PixelData = study.voxels[3].tobytes()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.save_as(tmp_path / "ct.dcm", enforce_file_format=True)
    said = _run(
        *(peer("dcmp2pgm"), "-p", tmp_path / "pr.dcm", "+S", tmp_path / "again.dcm"),
        *(tmp_path / "ct.dcm", tmp_path / "out.pgm"),
    )
    assert said.endswith("rc=0"), said
    assert (tmp_path / "out.pgm").stat().st_size > 34 * 28
    again, ours = pydicom.dcmread(tmp_path / "again.dcm"), _read(made["PR"][0])
    assert [each.GraphicLayer for each in again.GraphicLayerSequence] == [
        each.GraphicLayer for each in ours.GraphicLayerSequence
    ]
    assert len(again.GraphicAnnotationSequence) == len(ours.GraphicAnnotationSequence)
    assert _run(peer("dcm2pnm"), "--write-png", *_picture(made, tmp_path)).endswith("rc=0")


def _picture(made: dict[str, list[bytes]], folder: Path) -> tuple[Path, Path]:
    (folder / "sc.dcm").write_bytes(made["OT"][0])
    return folder / "sc.dcm", folder / "sc.png"


def _set(keyword: str, value: object) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        setattr(dataset, keyword, value)

    change.__name__ = keyword
    return change


def _blank(picture: Dataset) -> None:
    picture.PixelData = b"\0" * len(picture.PixelData)


def _no_legend(picture: Dataset) -> None:
    pixels = picture.pixel_array.copy()
    pixels[:, -344:] = 30
    pixels[(pixels == (230, 60, 60)).all(axis=-1)] = 0
    pixels[(pixels == (250, 200, 40)).all(axis=-1)] = 0
    picture.PixelData = pixels.tobytes()


def _other_source(picture: Dataset) -> None:
    picture.SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def _other_title(keys: Dataset) -> None:
    keys.ConceptNameCodeSequence[0].CodeValue = "113001"  # rejected for quality reasons


def _other_key(keys: Dataset) -> None:
    image = keys.ContentSequence[-1].ReferencedSOPSequence[0]
    other = image.ReferencedSOPInstanceUID.rpartition(".")[0] + ".1"
    image.ReferencedSOPInstanceUID = other


def _more_evidence(keys: Dataset) -> None:
    series = keys.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    more = copy.deepcopy(series.ReferencedSOPSequence[0])
    more.ReferencedSOPInstanceUID = more.ReferencedSOPInstanceUID.rpartition(".")[0] + ".1"
    series.ReferencedSOPSequence.append(more)


def _silent_keys(keys: Dataset) -> None:
    text = next(item for item in keys.ContentSequence if item.ValueType == "TEXT")
    text.TextValue = "Look at these."


def _other_observer(keys: Dataset) -> None:
    next(item for item in keys.ContentSequence if item.ValueType == "UIDREF").UID = "2.25.1"


def _moved(state: Dataset) -> None:
    line = state.GraphicAnnotationSequence[0].GraphicObjectSequence[0]
    line.GraphicData = [each + 1 for each in line.GraphicData]


def _ellipse_moved(state: Dataset) -> None:
    line = next(
        each
        for item in state.GraphicAnnotationSequence
        for each in item.get("GraphicObjectSequence", ())
        if each.GraphicType == "ELLIPSE"
    )
    line.GraphicData = [each + 0.02 for each in line.GraphicData]


def _on_another_image(state: Dataset) -> None:
    one, other, *_ = (  # the second has a hole
        item for item in state.GraphicAnnotationSequence if item.GraphicLayer == "FINDING1"
    )
    one.ReferencedImageSequence, other.ReferencedImageSequence = (
        other.ReferencedImageSequence,
        one.ReferencedImageSequence,
    )


def _one_mark_less(state: Dataset) -> None:
    del state.GraphicAnnotationSequence[0]


def _another_layer(state: Dataset) -> None:
    state.GraphicAnnotationSequence[0].GraphicLayer = "FINDING9"


def _another_name(state: Dataset) -> None:
    state.GraphicAnnotationSequence[0].TextObjectSequence[0].UnformattedTextValue = "Left lung"


def _no_banner(state: Dataset) -> None:
    del state.GraphicAnnotationSequence[-1]


def _half(state: Dataset) -> None:
    state.DisplayedAreaSelectionSequence[0].DisplayedAreaTopLeftHandCorner = [10, 1]


def _unlisted(state: Dataset) -> None:
    del state.ReferencedSeriesSequence[0].ReferencedImageSequence[0]


def _stretched(state: Dataset) -> None:
    state.DisplayedAreaSelectionSequence[0].PresentationPixelSpacing = [0.1, 5]


@pytest.mark.parametrize(
    ("kind", "change", "rule"),
    [
        ("OT", _set("BurnedInAnnotation", "NO"), "status"),
        ("OT", _set("ImageType", ["ORIGINAL", "PRIMARY"]), "status"),
        ("OT", _set("DerivationDescription", "Lungs"), "status"),
        ("OT", _set("Rows", 100), "readable"),
        ("OT", _set("PhotometricInterpretation", "YBR_FULL"), "attributes"),
        ("OT", _set("PatientID", "PID-9"), "identity"),
        ("OT", _blank, "content"),
        ("OT", _no_legend, "content"),
        ("OT", _other_source, "references"),
        ("KO", _other_title, "content"),
        ("KO", _other_key, "content"),
        ("KO", _more_evidence, "references"),
        ("KO", _silent_keys, "status"),
        ("KO", _other_observer, "provenance"),
        ("PR", _moved, "geometry"),
        ("PR", _ellipse_moved, "geometry"),
        ("PR", _on_another_image, "geometry"),
        ("PR", _one_mark_less, "geometry"),
        ("PR", _another_layer, "content"),
        ("PR", _another_name, "content"),
        ("PR", _no_banner, "status"),
        ("PR", _half, "geometry"),
        ("PR", _unlisted, "references"),
        ("PR", _set("PresentationLUTShape", "INVERSE"), "attributes"),
        ("PR", _set("RescaleSlope", "2"), "geometry"),
        ("PR", _stretched, "geometry"),
        ("PR", _set("ImageHorizontalFlip", "Y"), "geometry"),
        ("PR", _set("ImageRotation", 180), "geometry"),
        ("PR", _set("ShutterShape", "RECTANGULAR"), "geometry"),
    ],
)
def test_what_is_shown_otherwise_than_found_is_refused(
    study: Any,
    found: Any,
    made: dict[str, list[bytes]],
    kind: str,
    change: Callable[[Dataset], None],
    rule: str,
) -> None:
    broken = _read(made[kind][0])
    change(broken)
    out = io.BytesIO()
    broken.save_as(out)
    files = [raw for raws in made.values() for raw in raws if raw is not made[kind][0]]
    with pytest.raises(GateError) as refused:
        check([*files, out.getvalue()], found.everything(study), study.headers, wanted=ALL)
    assert refused.value.rule == rule, refused.value


def test_an_object_that_was_not_asked_for_or_is_not_there_is_refused(
    study: Any, found: Any, made: dict[str, list[bytes]]
) -> None:
    files = [raw for raws in made.values() for raw in raws]
    findings = found.everything(study)
    with pytest.raises(GateError, match="rule of content"):
        check(files, findings, study.headers)
    without = [raw for raw in files if raw is not made["KO"][0]]
    with pytest.raises(GateError, match="rule of content"):
        check(without, findings, study.headers, wanted=ALL)
    untied = _read(made["SR"][0])
    untied.ContentSequence = [
        item
        for item in untied.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue != "ANALYSIS-OBJECTS"
    ]
    out = io.BytesIO()
    untied.save_as(out)
    with pytest.raises(GateError, match="rule of references"):
        check(
            [*(raw for raw in files if raw is not made["SR"][0]), out.getvalue()],
            findings,
            study.headers,
            wanted=ALL,
        )
