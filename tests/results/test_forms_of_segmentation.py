"""Masks in each form of a Segmentation, on slices, frames and projection images."""

from __future__ import annotations

import copy
import io
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicomai.findings import Findings
from dicomai.imaging.geometry import Plane
from dicomai.results.encode import encode, written
from dicomai.results.gate import GateError, check
from dicomai.results.gate.voxels import check_voxels
from dicomai.results.job import job_of
from dicomai.results.seg import drawn, encode_segs

FORMS = ("SEG", "SEG:ALL-FRAMES", "SEG:FRACTIONAL", "SEG:LABELMAP")


def _read(raw: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(raw))


def _bytes(dataset: Dataset) -> bytes:
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def _errors(dciodvfy: str, raw: bytes, path: Path) -> list[str]:
    path.write_bytes(raw)
    said = subprocess.run([dciodvfy, "-new", path], capture_output=True, text=True, timeout=60)
    return [line for line in said.stderr.splitlines() if line.startswith("Error")]


@pytest.fixture(scope="module")
def lungs(study: Any, found: Any) -> Findings:
    """Two lungs that share no voxel, the right one with probabilities."""
    right, left, _ = found.everything(study).segments
    likely = np.linspace(0.5, 1, int(right.mask.sum()), dtype=np.float32)
    return replace(found.nothing(study), segments=(replace(right, probability=likely), left))


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_read_back_voxel_for_voxel(study: Any, lungs: Findings, form: str) -> None:
    (raw, *_) = study.by_modality(lungs, (form, "SR"))["SEG"]
    seg = hd.seg.segread(io.BytesIO(raw))
    read = seg.get_pixels_by_source_instance(
        [each.SOPInstanceUID for each in study.headers],
        assert_missing_frames_are_empty=True,
        rescale_fractional=form == "SEG:FRACTIONAL",
    )
    for number, segment in enumerate(lungs.segments):
        if form == "SEG:FRACTIONAL" and segment.probability is not None:
            inside = read[..., number][segment.mask]
            np.testing.assert_allclose(inside, segment.probability, atol=1 / 255)
            assert not read[..., number][~segment.mask].any()
        else:
            np.testing.assert_array_equal(read[..., number] > 0.5, segment.mask)
    assert seg.NumberOfFrames == {"SEG": 10, "SEG:ALL-FRAMES": 18, "SEG:LABELMAP": 7}.get(form, 10)


def test_segments_that_share_voxels_get_label_maps_of_their_own(study: Any, found: Any) -> None:
    made = study.by_modality(found.everything(study), ("SEG:LABELMAP", "SR"))
    one, other = (_read(raw) for raw in made["SEG"])
    assert one.SeriesInstanceUID == other.SeriesInstanceUID
    names = [
        [item.SegmentLabel for item in each.SegmentSequence if item.SegmentNumber]
        for each in (one, other)
    ]
    assert names == [["Right lung", "Left lung"], ["Nodule"]]
    (report,) = (_read(raw) for raw in made["SR"])
    tied = {
        (each.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for each in _items(report)
        if each.ValueType == "IMAGE" and each.ConceptNameCodeSequence[0].CodeValue == "121191"
    }
    assert tied == {one.SOPInstanceUID, other.SOPInstanceUID}


def _items(holder: Dataset) -> list[Dataset]:
    return [each for item in holder.get("ContentSequence", ()) for each in (item, *_items(item))]


def test_a_label_map_beside_masks_is_tied_to_the_report(study: Any, lungs: Findings) -> None:
    files = study.files(lungs, ("SEG", "SEG:LABELMAP"))
    check(files, lungs, study.headers, wanted=("SEG", "SEG:LABELMAP"))
    classes = [str(_read(raw).SOPClassUID).rpartition("66.")[2] for raw in files[:2]]
    assert classes == ["4", "7"]
    assert [_read(raw).SeriesNumber for raw in files] == [3001, 3006, 3002]


def test_dcmqi_reads_a_label_map(
    peer: Callable[[str], str], study: Any, lungs: Findings, tmp_path: Path
) -> None:
    path = tmp_path / "labels.dcm"
    path.write_bytes(study.files(lungs, ("SEG:LABELMAP",))[0])
    program = peer("segimage2itkimage")
    command = [program, "--inputDICOM", path, "--outputDirectory", tmp_path, "-t", "nrrd"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert len(list(tmp_path.glob("*.nrrd"))) >= 1


def test_several_hundred_segments_fit(study: Any, found: Any) -> None:
    right = found.everything(study).segments[0]
    many = []
    for number in range(300):
        mask = np.zeros(study.grid.shape_kji, bool)
        mask.reshape(-1)[number * 28 : number * 28 + 3] = True
        many.append(replace(right, label=f"Part {number}", tracking_id=f"part {number}", mask=mask))
    findings = replace(found.nothing(study), segments=tuple(many))
    job = job_of(findings, study.headers, found.job, study.context)
    wanted = ("SEG", "SEG:LABELMAP")
    masks, labels = (
        _read(written(each.dataset)) for each in encode_segs(job, drawn(findings), wanted)
    )
    for seg in (masks, labels):
        assert len(check_voxels([seg], findings, study.headers, wanted)) == 300
    assert labels.BitsAllocated == 16


@pytest.fixture(scope="module")
def flat(xray: Any, found: Any, study: Any) -> Findings:
    """A mask on a projection image, and a box with a mask."""
    mask = np.zeros((1, *xray.grid.shape_ji), bool)
    mask[0, 5:9, 4:20] = True
    lung = replace(found.everything(study).segments[0], mask=mask)
    (box,) = found.on_xray(xray).detections
    spot = np.zeros_like(mask)
    spot[0, 6, 10] = True
    return replace(found.on_xray(xray), segments=(lung,), detections=(replace(box, mask=spot),))


@pytest.mark.parametrize("form", ["SEG", "SEG:FRACTIONAL"])
def test_an_image_without_a_place_has_a_segmentation_too(
    peer: Callable[[str], str], xray: Any, flat: Findings, form: str, tmp_path: Path
) -> None:
    made = xray.by_modality(flat, (form, "SR", "PR", "KO"))
    (raw,) = made["SEG"]
    seg = hd.seg.segread(io.BytesIO(raw))
    assert "FrameOfReferenceUID" not in seg
    read = seg.get_pixels_by_source_instance([xray.headers[0].SOPInstanceUID])
    np.testing.assert_array_equal(read[..., 0] > 0, flat.segments[0].mask)
    for kind, (each,) in made.items():
        assert not _errors(peer("dciodvfy"), each, tmp_path / f"{kind}.dcm"), kind


def _enhanced(headers: list[Dataset], frames: list[int], number: int) -> Dataset:
    """Return an enhanced CT whose frames are these slices, in this order."""
    enhanced = copy.deepcopy(headers[0])
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(enhanced, keyword)
    enhanced.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    enhanced.SOPInstanceUID = f"1.2.826.0.1.3680043.10.99.1.100{number}"
    enhanced.NumberOfFrames = len(frames)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = headers[0].PixelSpacing
    measures.SliceThickness = headers[0].SliceThickness
    orientation.ImageOrientationPatient = headers[0].ImageOrientationPatient
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    enhanced.SharedFunctionalGroupsSequence = [shared]
    enhanced.PerFrameFunctionalGroupsSequence = []
    for k in frames:
        groups, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = headers[k].ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = "1", "-1024", "HU"
        groups.PlanePositionSequence = [position]
        groups.PixelValueTransformationSequence = [values]
        enhanced.PerFrameFunctionalGroupsSequence.append(groups)
    return enhanced


@pytest.fixture(scope="module", params=["axial", "oblique"])
def enhanced(study_lying: Any, found: Any, request: Any) -> tuple[Any, Findings]:
    """The slices of a CT as frames of two enhanced objects, in no order, and what is in them."""
    study = study_lying(request.param)
    orders = [[4, 0, 2, 8, 6], [1, 7, 5, 3]]
    objects = [_enhanced(study.headers, order, n) for n, order in enumerate(orders)]
    where = {k: (n, order.index(k) + 1) for n, order in enumerate(orders) for k in order}
    grid = replace(
        study.grid,
        sop_instance_uids=tuple(objects[where[k][0]].SOPInstanceUID for k in range(9)),
        frame_numbers=tuple(where[k][1] for k in range(9)),
    )
    framed = replace(study, headers=objects, grid=grid)
    return framed, found.everything(framed)


def test_results_on_an_enhanced_source_name_its_frames(
    peer: Callable[[str], str], enhanced: tuple[Any, Findings], tmp_path: Path
) -> None:
    study, findings = enhanced
    made = study.by_modality(findings, ("SEG", "SR", "SC", "KO", "PR"))
    seg = hd.seg.segread(io.BytesIO(made["SEG"][0]))
    masks = [each.mask for each in findings.segments[:2]]
    for groups in seg.PerFrameFunctionalGroupsSequence:
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        k = list(zip(study.grid.sop_instance_uids, study.grid.frame_numbers, strict=True)).index(
            (source.ReferencedSOPInstanceUID, source.ReferencedFrameNumber)
        )
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(position, study.grid.lps_mm((k, 0, 0)), atol=1e-6)
    for number, mask in enumerate(masks, start=1):
        volume = seg.get_volume(segment_numbers=[number], combine_segments=False)
        index = np.column_stack(np.nonzero(volume.array[..., 0]))
        theirs = np.column_stack([index, np.ones(len(index))]) @ volume.affine.T
        ours = study.grid.lps_mm(np.column_stack(np.nonzero(mask)))
        assert len(theirs) == len(ours)
        apart = np.linalg.norm(theirs[:, None, :3] - ours[None], axis=2)
        assert apart.min(axis=0).max() < 0.01
    (keys,) = (_read(raw) for raw in made["KO"])
    picked = [
        (each.ReferencedSOPInstanceUID[-1], each.ReferencedFrameNumber)
        for item in keys.ContentSequence
        if item.ValueType == "IMAGE"
        for each in item.ReferencedSOPSequence
    ]
    assert picked[:2] == [("1", 1), ("1", 4)]  # slices 1 and 3
    assert picked[2] in [("0", 1), ("1", 3)]  # 4 or 5: the nodule lies between
    assert picked[3:] == [("0", 5)]  # slice 6
    for kind, raws in made.items():
        assert not _errors(peer("dciodvfy"), raws[0], tmp_path / f"{kind}.dcm"), kind


def test_why_an_enhanced_image_was_not_analysed_is_told_though_its_rows_cant_be_read(
    study: Any, found: Any
) -> None:
    enhanced = _enhanced(study.headers, list(range(9)), 0)
    rows = Tag("Rows")
    enhanced._dict[rows] = RawDataElement(rows, "US", 1, b"\1", 0, False, True, True)
    source = replace(study, headers=[enhanced])
    where = Plane(shape_ji=(0, 0), spacing_ji_mm=None, sop_instance_uid=enhanced.SOPInstanceUID)
    findings = replace(
        found.nothing(source), where=where, inputs=source.inputs, not_analysed="Rows can't be read."
    )
    (report,) = source.by_modality(findings, ("SR",))["SR"]
    assert b"Rows can't be read." in report


def _framed(study: Any, enhanced: Dataset) -> Any:
    """Return the study as the first frames of an enhanced object, in their order."""
    depth = study.grid.shape_kji[0]
    grid = replace(
        study.grid,
        sop_instance_uids=(enhanced.SOPInstanceUID,) * depth,
        frame_numbers=tuple(range(1, depth + 1)),
    )
    return replace(study, headers=[enhanced], grid=grid)


def test_the_side_of_the_frames_that_were_looked_at_stands_on_results(
    study: Any, found: Any
) -> None:
    slices = list(range(9))
    enhanced = _enhanced(study.headers, [*slices, 0], 0)  # the last one is of another volume
    enhanced.BodyPartExamined = "KNEE"
    for groups, side in zip(enhanced.PerFrameFunctionalGroupsSequence, "LLLLLLLLLR", strict=True):
        anatomy = Dataset()
        anatomy.FrameLaterality = side
        groups.FrameAnatomySequence = [anatomy]

    def named() -> set[str]:
        source = _framed(study, enhanced)
        made = source.by_modality(found.little(source), ("SEG", "SR", "RTSTRUCT"))
        return {str(_read(made[kind][0]).get("Laterality", "")) for kind in ("SEG", "RTSTRUCT")}

    assert named() == {"L"}
    enhanced.PerFrameFunctionalGroupsSequence[4].FrameAnatomySequence[0].FrameLaterality = "R"
    assert named() == {""}


def test_a_group_that_is_empty_in_each_frame_is_the_one_that_all_share(
    study: Any, found: Any
) -> None:
    enhanced = _enhanced(study.headers, list(range(9)), 0)
    (shared,) = enhanced.SharedFunctionalGroupsSequence
    frames = enhanced.PerFrameFunctionalGroupsSequence
    shared.PixelValueTransformationSequence = frames[0].PixelValueTransformationSequence
    for groups in frames:
        groups.PixelMeasuresSequence = groups.PlaneOrientationSequence = []
        groups.PixelValueTransformationSequence = []
    source = _framed(study, enhanced)
    kinds = ("SEG", "SR", "PR", "PM", "RTSTRUCT")
    made = source.by_modality(found.everything(source), kinds)  # by the gate
    (state,) = (_read(raw) for raw in made["PR"])
    assert (state.RescaleSlope, state.RescaleIntercept) == (1, -1024)


def _one_off(seg: Dataset) -> None:
    pixels = bytearray(seg.PixelData)
    pixels[len(pixels) // 2] ^= 3
    seg.PixelData = bytes(pixels)


def _one_more(seg: Dataset) -> None:
    pixels = bytearray(seg.PixelData)
    pixels[pixels.index(0)] = 1
    seg.PixelData = bytes(pixels)


def _one_frame_less(seg: Dataset) -> None:
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    seg.PerFrameFunctionalGroupsSequence.pop()
    seg.NumberOfFrames -= 1
    octets = np.packbits(
        bits[: seg.NumberOfFrames * seg.Rows * seg.Columns], bitorder="little"
    ).tobytes()
    seg.PixelData = octets + bytes(len(octets) % 2)


def _occupancy(seg: Dataset) -> None:
    seg.SegmentationFractionalType = "OCCUPANCY"


def _another_label(seg: Dataset) -> None:
    pixels = bytearray(seg.PixelData)
    pixels[0] = 9
    seg.PixelData = bytes(pixels)


def _exchanged_labels(seg: Dataset) -> None:
    one, other = (item for item in seg.SegmentSequence if item.SegmentNumber)
    one.SegmentNumber, other.SegmentNumber = other.SegmentNumber, one.SegmentNumber


@pytest.mark.parametrize(
    ("form", "change", "rule"),
    [
        ("SEG:FRACTIONAL", _one_off, "geometry"),
        ("SEG:FRACTIONAL", _occupancy, "attributes"),
        ("SEG:LABELMAP", _one_more, "geometry"),
        ("SEG:LABELMAP", _another_label, "content"),
        ("SEG:LABELMAP", _exchanged_labels, "geometry"),
        ("SEG:ALL-FRAMES", _one_frame_less, "content"),
    ],
)
def test_a_changed_form_is_refused(
    study: Any, lungs: Findings, form: str, change: Callable[[Dataset], None], rule: str
) -> None:
    seg, report = study.files(lungs, (form,))
    broken = _read(seg)
    change(broken)
    with pytest.raises(GateError) as refused:
        check([_bytes(broken), report], lungs, study.headers, wanted=(form,))
    assert refused.value.rule == rule, refused.value


@pytest.mark.parametrize("form", FORMS)
def test_another_form_than_was_asked_for_is_refused(study: Any, lungs: Findings, form: str) -> None:
    other = FORMS[FORMS.index(form) - 1]
    if (form, other) == ("SEG:ALL-FRAMES", "SEG"):
        other = "SEG:FRACTIONAL"
    with pytest.raises(GateError):
        check(study.files(lungs, (form,)), lungs, study.headers, wanted=(other,))


def test_another_frame_than_was_looked_at_is_refused(enhanced: tuple[Any, Findings]) -> None:
    study, findings = enhanced
    seg, report = study.files(findings)
    broken = _read(seg)
    frame = broken.PerFrameFunctionalGroupsSequence[0]
    frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = 5
    with pytest.raises(GateError, match="rule of references"):
        check([_bytes(broken), report], findings, study.headers)
    moved = copy.deepcopy(study.headers)
    groups = moved[0].PerFrameFunctionalGroupsSequence
    groups[0].PlanePositionSequence, groups[1].PlanePositionSequence = (
        groups[1].PlanePositionSequence,
        groups[0].PlanePositionSequence,
    )
    with pytest.raises(GateError, match="rule of geometry"):
        check([seg, report], findings, moved)


def test_a_region_on_a_projection_refers_to_the_frame_that_shows_it(
    xray: Any, flat: Findings
) -> None:
    seg, report = xray.files(flat)
    read = _read(report)
    (first, second) = (
        each.ReferencedSOPSequence[0]
        for each in _items(read)
        if (each.ValueType == "IMAGE" and each.ConceptNameCodeSequence[0].CodeValue == "121214")
        or (each.ValueType == "IMAGE" and each.ConceptNameCodeSequence[0].CodeValue == "121191")
    )
    assert (first.ReferencedFrameNumber, second.ReferencedFrameNumber) == (1, 2)
    first.ReferencedFrameNumber = 2
    with pytest.raises(GateError, match="rule of references"):
        check([seg, _bytes(read)], flat, xray.headers)


def test_a_region_in_a_label_map_on_a_projection_refers_to_its_label(
    xray: Any, flat: Findings
) -> None:
    (lung,), (box,) = flat.segments, flat.detections
    elsewhere = np.zeros_like(lung.mask)
    elsewhere[0, 20:22, 4:20] = True
    two = replace(flat, detections=(replace(box, mask=elsewhere),))
    objects = ("SEG:LABELMAP", "SR")
    labels, report = xray.files(two, objects)
    check([labels, report], two, xray.headers, wanted=objects)
    read = _read(report)
    named = [
        each.ReferencedSOPSequence[0]
        for each in _items(read)
        if each.ValueType == "IMAGE" and each.ConceptNameCodeSequence[0].CodeValue == "121214"
    ]
    assert [each.ReferencedSegmentNumber for each in named] == [1, 2]
    assert not any("ReferencedFrameNumber" in each for each in named)
    for each in named:
        del each.ReferencedSegmentNumber
        each.ReferencedFrameNumber = 1
    with pytest.raises(GateError, match="rule of references"):
        check([labels, _bytes(read)], two, xray.headers, wanted=objects)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("filled", "volume"), [((1, 6), False), ((1, 3, 5), False), ((3, 4), True)]
)
def test_slices_with_others_between_them_are_not_called_a_volume(
    study: Any, lungs: Findings, form: str, filled: tuple[int, ...], volume: bool
) -> None:
    mask = np.zeros_like(lungs.segments[0].mask)
    mask[list(filled), 5:9, 4:20] = True
    one = replace(lungs, segments=(replace(lungs.segments[0], mask=mask, probability=None),))
    raw, report = study.files(one, (form, "SR"))
    whole = form == "SEG:ALL-FRAMES"
    read = _read(raw)
    assert read.get("DimensionOrganizationType") == ("3D" if volume or whole else None)
    check([raw, report], one, study.headers, wanted=(form, "SR"))
    if not volume and not whole:
        read.DimensionOrganizationType = "3D"
        with pytest.raises(GateError, match="calls slices a volume that are none"):
            check([_bytes(read), report], one, study.headers, wanted=(form, "SR"))


def test_tilted_and_uneven_slices_are_placed_one_by_one(study: Any, found: Any) -> None:
    headers = copy.deepcopy(study.headers)
    steps = [0, 1, 2, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5]
    affine = study.grid.index_to_lps.copy()
    affine[:3, 0] = [0, 0.5, 3.0]
    for step, header in zip(steps, headers, strict=True):
        header.ImagePositionPatient = (affine[:3] @ (step, 0, 0, 1)).tolist()
    grid = replace(study.grid, index_to_lps=affine, slice_steps=tuple(map(float, steps)))
    tilted = replace(study, headers=headers, grid=grid)
    findings = found.everything(tilted)
    tilted.by_modality(findings, ("SEG", "SR", "SC", "KO", "PR"))
    results = encode(findings, headers, found.job, study.context)
    assert (
        "SpacingBetweenSlices"
        not in (results[0].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0])
    )
    written(results[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("off_mm", [0.09, 5.0])
def test_uneven_slices_have_no_one_distance(
    form: Any, off_mm: float, study: Any, lungs: Findings
) -> None:
    headers = copy.deepcopy(study.headers)
    along_mm = [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0 + off_mm]
    for z, header in zip(along_mm, headers, strict=True):
        header.ImagePositionPatient = [*header.ImagePositionPatient[:2], -200 + z]
        header.SliceThickness = header.SpacingBetweenSlices = 10.0
    affine = study.grid.index_to_lps.copy()
    affine[:3, 0] = [0, 0, 10.0]
    steps = tuple(each / 10 for each in along_mm)
    grid = replace(study.grid, index_to_lps=affine, slice_steps=steps)
    uneven, findings = replace(study, headers=headers, grid=grid), replace(lungs, where=grid)
    wanted = (form, "SR", "PM")
    files = uneven.files(findings, wanted)
    check(files, findings, headers, wanted=wanted)
    multi = [each for each in map(_read, files) if "SharedFunctionalGroupsSequence" in each]
    assert {each.Modality for each in multi} == {"SEG", "OT"}
    for number, each in enumerate(multi):
        measures = each.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert "SpacingBetweenSlices" not in measures
        measures.SpacingBetweenSlices = 10.0
        others = [raw for k, raw in enumerate(files) if k != number]
        with pytest.raises(GateError, match=r"unevenly spaced, and it says 10\.0 mm"):
            check([_bytes(each), *others], findings, headers, wanted=wanted)


def test_slices_that_are_turned_by_a_hair_keep_their_directions(
    peer: Callable[[str], str], study: Any, lungs: Findings, tmp_path: Path
) -> None:
    headers = copy.deepcopy(study.headers)
    headers[4].ImageOrientationPatient = [1.0, 0.0005, 0.0, -0.0005, 1.0, 0.0]
    turned = replace(study, headers=headers)
    for form in FORMS:
        wanted = (form, "SR", "PM")
        files = turned.files(lungs, wanted)
        check(files, lungs, headers, wanted=wanted)
        for raw in files[:2]:
            read = _read(raw)
            assert "PlaneOrientationSequence" not in read.SharedFunctionalGroupsSequence[0]
            said = {
                tuple(groups.PlaneOrientationSequence[0].ImageOrientationPatient)
                for groups in read.PerFrameFunctionalGroupsSequence
            }
            assert said == {tuple(headers[k].ImageOrientationPatient) for k in (3, 4)}
            if form != "SEG:LABELMAP":
                assert not _errors(peer("dciodvfy"), raw, tmp_path / "seg.dcm")


def _like(study: Any, headers: list[Dataset], orientation: list[str], ks: list[int]) -> Any:
    """Return the study with slices whose orientation is spelled like this."""
    for k in ks:
        value = DataElement("ImageOrientationPatient", "DS", orientation, validation_mode=0)
        headers[k]["ImageOrientationPatient"] = value
    return replace(study, headers=headers)


@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_a_turned_slice_are_none_too_long(
    study: Any, lungs: Findings, form: str
) -> None:
    long = ["0.999999995", "9.99999998333e-05", "0", "-9.99999998333e-05", "0.999999995", "0"]
    turned = _like(study, copy.deepcopy(study.headers), long, [4])
    wanted = (form, "SR", "PM")
    files = turned.files(lungs, wanted)
    check(files, lungs, turned.headers, wanted=wanted)
    for raw in files[:2]:
        said = {
            tuple(groups.PlaneOrientationSequence[0].ImageOrientationPatient)
            for groups in _read(raw).PerFrameFunctionalGroupsSequence
        }
        assert len(said) == 2
        assert max(len(str(each)) for cosines in said for each in cosines) <= 16
        (other,) = said - {(1.0, 0.0, 0.0, 0.0, 1.0, 0.0)}
        np.testing.assert_allclose(other, [float(each) for each in long], atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_slices_that_only_write_their_orientation_otherwise_are_a_volume(
    study: Any, lungs: Findings, form: str
) -> None:
    hair = ["1", "1e-17", "0", "-1e-6", "1", "-0"]
    written_otherwise = _like(study, copy.deepcopy(study.headers), hair, [1, 3, 5, 7])
    one = replace(lungs, segments=lungs.segments[:1])
    wanted = (form, "SR", "PM")
    files = written_otherwise.files(one, wanted)
    assert files == study.files(one, wanted)
    for raw in files[:2]:
        assert hd.imread(io.BytesIO(raw)).get_volume().spatial_shape[1:] == study.grid.shape_kji[1:]


@pytest.mark.parametrize("form", FORMS)
def test_planes_that_are_not_parallel_are_not_called_a_volume(
    study: Any, lungs: Findings, form: str
) -> None:
    turn = ["1", "0.0005", "0", "-0.0005", "1", "0"]
    turned = _like(study, copy.deepcopy(study.headers), turn, [4])
    one = replace(lungs, segments=lungs.segments[:1])
    kinds = [
        [_read(raw).get("DimensionOrganizationType") for raw in each.files(one, (form, "PM"))[:2]]
        for each in (study, turned)
    ]
    assert kinds == [["3D", "3D"], [None, None]]
