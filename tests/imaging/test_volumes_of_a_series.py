"""A series of several volumes is parted by what tells them apart, and by nothing else."""

from __future__ import annotations

import copy
import io
import mmap
import struct
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from scipy.spatial.transform import Rotation

from dicomai.errors import InputError
from dicomai.imaging.intake import Intake
from dicomai.imaging.series import read_object
from dicomai.imaging.volume import PlanesInMemory, SourceVolume, volume_of, volumes_of

Series = Callable[..., list[Dataset]]
Enhanced = Callable[..., Dataset]


def several(make_series: Series, values: list[dict[str, Any]]) -> list[Dataset]:
    """A series for each dict of attributes, all at one place, in one shuffled list; the voxels of
    the first are 0, those of the next 10, and so on."""
    out = []
    first = make_series()[0]
    for number, attributes in enumerate(values):
        for each in make_series(lambda lps, number=number: np.full(lps.shape[:-1], 10.0 * number)):
            each.Modality = "MR"
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
                each[keyword] = copy.copy(first[keyword])
            each.InstanceNumber = 1
            for keyword, value in attributes.items():
                setattr(each, keyword, value)
            out.append(each)
    return [out[index] for index in np.random.default_rng(1).permutation(len(out))]


def told(volumes: tuple[SourceVolume, ...]) -> dict[str, float]:
    """What each part is called, and what stands in all of its voxels."""
    assert all(np.ptp(volume.voxels) == 0 for volume in volumes)
    return {volume.part: float(volume.voxels[0, 0, 0]) for volume in volumes}


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([{"TemporalPositionIdentifier": n} for n in (1, 2, 10)], ["time 1", "time 2", "time 10"]),
        ([{"EchoTime": t} for t in (9.5, 120)], ["echo time 9.5", "echo time 120"]),
        ([{"DiffusionBValue": b} for b in (0.0, 800.0)], ["b-value 0", "b-value 800"]),
        ([{"AcquisitionNumber": n} for n in (3, 4)], ["acquisition 3", "acquisition 4"]),
        ([{"TriggerTime": t} for t in (0, 50)], ["heart phase 0", "heart phase 50"]),
        (
            [{"ImageType": ["ORIGINAL", "PRIMARY", kind]} for kind in ("M", "P")],
            ["kind ORIGINAL\\PRIMARY\\M", "kind ORIGINAL\\PRIMARY\\P"],
        ),
        (
            [
                {"DiffusionBValue": 0.0},
                {"DiffusionBValue": 1000.0, "DiffusionGradientOrientation": [0.0, 0.0, 1.0]},
                {"DiffusionBValue": 1000.0, "DiffusionGradientOrientation": [0.0, 1.0, 0.0]},
            ],
            ["b-value 0", "b-value 1000, direction 0\\0\\1", "b-value 1000, direction 0\\1\\0"],
        ),
        (
            [
                {"TemporalPositionIdentifier": t, "EchoTime": e}
                for t, e in ((1, 10), (1, 20), (2, 10), (2, 20))
            ],
            [f"time {t}, echo time {e}" for t in (1, 2) for e in (10, 20)],
        ),
    ],
)
def test_volumes_are_told_apart(
    values: list[dict[str, Any]], names: list[str], make_series: Series
) -> None:
    volumes = volumes_of(several(make_series, values))
    assert [volume.part for volume in volumes] == list(dict.fromkeys(told(volumes)))
    assert told(volumes) == pytest.approx(
        {name: 10.0 * number for number, name in enumerate(names)}
        if names[1:2] != ["b-value 1000, direction 0\\0\\1"]
        else dict(zip(names, (0.0, 10.0, 20.0), strict=True)),
        abs=0.01,
    )


MARKS: dict[str, tuple[str, str]] = {
    "TemporalPositionIndex": ("FrameContentSequence", "time"),
    "EffectiveEchoTime": ("MREchoSequence", "echo time"),
    "DiffusionBValue": ("MRDiffusionSequence", "b-value"),
    "NominalPercentageOfCardiacPhase": ("CardiacSynchronizationSequence", "heart phase"),
    "FrameAcquisitionNumber": ("FrameContentSequence", "acquisition"),
    "TemporalPositionTimeOffset": ("TemporalPositionSequence", "frame time"),
}
"""What tells frames apart, its functional group, and what parts are called by it."""


@settings(max_examples=25, deadline=None)
@given(data=st.data(), enhanced=st.booleans(), keyword=st.sampled_from(list(MARKS)))
def test_every_slice_stands_in_its_own_volume(
    make_series: Series, make_enhanced: Enhanced, data: st.DataObject, enhanced: bool, keyword: str
) -> None:
    turn = Rotation.random(rng=np.random.default_rng(data.draw(st.integers(0, 99)))).as_matrix()
    step = round(data.draw(st.floats(0.3, 4)), 2)
    first = np.array([-40.0, -30.0, 100.0])
    values = data.draw(st.lists(st.integers(1, 999), min_size=2, max_size=4, unique=True))
    slices, groups = [], []
    group, name = MARKS[keyword]
    for value in values:
        jitter = np.array(data.draw(st.tuples(*[st.floats(-0.02, 0.02)] * 3)))
        for each in make_series(
            lambda lps, value=value: np.full(lps.shape[:-1], value / 10),
            row=turn[:, 0],
            column=turn[:, 1],
            first=first + jitter,
            spacing_kji=(step, 1, 1),
            shape_kji=(4, 2, 3),
        ):
            each.Modality, each.InstanceNumber = "MR", 1
            setattr(each, keyword, value)
            slices.append(each)
            groups.append({group: {keyword: value}})
    for each in slices[1:]:
        for shared in ("SeriesInstanceUID", "FrameOfReferenceUID"):
            each[shared] = copy.copy(slices[0][shared])
    order = data.draw(st.permutations(range(len(slices))))
    slices, groups = [slices[at] for at in order], [groups[at] for at in order]
    volumes = volumes_of([make_enhanced(slices, groups)] if enhanced else slices)
    assert [each.part for each in volumes] == [f"{name} {value}" for value in sorted(values)]
    for volume, value in zip(volumes, sorted(values), strict=True):
        np.testing.assert_allclose(volume.voxels, value / 10, rtol=1e-6)
        assert volume.grid.shape_kji == (4, 2, 3)
        assert volume.grid.spacing_kji_mm[0] == pytest.approx(step)
        if enhanced:
            own = [at for at, said in enumerate(groups, 1) if said[group][keyword] == value]
            assert sorted(volume.grid.frame_numbers) == own


def test_a_model_that_takes_one_volume_is_told_of_all(make_series: Series) -> None:
    slices = several(make_series, [{"EchoTime": 10}, {"EchoTime": 20}])
    with pytest.raises(InputError) as error:
        volume_of(slices)
    assert "is no single volume but 2: echo time 10; echo time 20. " in error.value.sentence


def test_an_attribute_that_changes_from_slice_to_slice_parts_nothing(make_series: Series) -> None:
    slices = several(make_series, [{"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}])
    for number, each in enumerate(slices):
        each.TriggerTime = number * 7
        each.EchoTime = 10
    assert told(volumes_of(slices)) == pytest.approx(
        {"acquisition 1": 0.0, "acquisition 2": 10.0}, abs=0.01
    )


def test_without_any_attribute_each_run_through_the_positions_is_a_volume(
    make_series: Series,
) -> None:
    slices = several(make_series, [{}, {}])
    slices.sort(key=lambda each: (each.PixelData, each.ImagePositionPatient[2]))
    first = sorted(slices, key=lambda each: np.frombuffer(each.PixelData, "<i2")[0])
    for number, each in enumerate(first):
        each.InstanceNumber = number + 1
    assert told(volumes_of(slices)) == pytest.approx({"turn 1": 0.0, "turn 2": 10.0}, abs=0.01)
    for number, each in enumerate(slices):
        each.InstanceNumber = 1 + number // 5
    with pytest.raises(InputError, match="each of its 5 positions is there as often"):
        volumes_of(slices)


@pytest.mark.parametrize(("vr", "value"), [("IS", None), ("LO", "last")])
def test_slices_without_a_number_belong_to_no_run(
    vr: str, value: str | None, make_series: Series
) -> None:
    """Whatever it is sorted as, a slice might so change places with one of the other volume."""
    slices = several(make_series, [{}, {}])
    slices.sort(
        key=lambda each: (np.frombuffer(each.PixelData, "<i2")[0], each.ImagePositionPatient[2])
    )
    for number, each in enumerate(slices, start=1):
        each.InstanceNumber = number
    assert len(volumes_of(slices)) == 2
    for at in (0, -1):
        before = slices[at]["InstanceNumber"]
        slices[at].add_new("InstanceNumber", vr, value)
        with pytest.raises(InputError, match="each of its 5 positions is there as often"):
            volumes_of(slices)
        slices[at]["InstanceNumber"] = before


def test_a_time_that_broke_off_is_no_volume(make_series: Series) -> None:
    slices = several(make_series, [{"TemporalPositionIdentifier": n} for n in (1, 2)])
    last = [each for each in slices if each.TemporalPositionIdentifier == 2]
    slices.remove(last[0])
    with pytest.raises(InputError, match="has 2 slices at"):
        volumes_of(slices)


@pytest.mark.parametrize(
    ("tag", "vr", "values"),
    [
        ((0x0019, 0x100C), "IS", ["0", "1000"]),
        ((0x0043, 0x1039), "IS", [["0", "8", "0", "0"], ["1000001000", "8", "0", "0"]]),
        ((0x0043, 0x1039), "UN", [b"0\\8\\0\\0", b"1000001000\\8\\0\\0 "]),
        ((0x2001, 0x1003), "FL", [0.0, 1000.0]),
        ((0x0065, 0x1009), "FD", [0.0, 1000.0]),
        ((0x2001, 0x1003), "UN", [struct.pack("<f", b) for b in (0, 1000)]),
        ((0x0065, 0x1009), "UN", [struct.pack("<d", b) for b in (0, 1000)]),
    ],
)
def test_b_values_of_older_scanners_are_private(
    tag: tuple[int, int], vr: str, values: list[Any], make_series: Series
) -> None:
    slices = several(make_series, [{"EchoNumbers": 1}, {"EchoNumbers": 2}])
    for each in slices:
        each.add_new(tag, vr, values[int(each.EchoNumbers) - 1])
        del each.EchoNumbers
    assert set(told(volumes_of(slices))) == {"b-value 0", "b-value 1000"}


@pytest.mark.parametrize(
    ("tag", "vr", "value"),
    [
        ((0x0019, 0x100C), "SQ", [Dataset()]),
        ((0x0019, 0x100C), "UN", b"many"),
        ((0x2001, 0x1003), "UN", b"1000.0"),
        ((0x0065, 0x1009), "FD", float("nan")),
    ],
)
def test_a_private_attribute_that_is_no_number_is_no_b_value(
    tag: tuple[int, int], vr: str, value: Any, make_series: Series
) -> None:
    slices = several(make_series, [{"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}])
    for each in slices[::2]:
        each.add_new(tag, vr, value)
    assert set(told(volumes_of(slices))) == {"acquisition 1", "acquisition 2"}


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        (
            [{"FrameContentSequence": {"TemporalPositionIndex": n}} for n in (1, 2)],
            ["time 1", "time 2"],
        ),
        (
            [{"MREchoSequence": {"EffectiveEchoTime": t}} for t in (4.6, 2.3)],
            ["echo time 2.3", "echo time 4.6"],
        ),
        (
            [{"MRDiffusionSequence": {"DiffusionBValue": b}} for b in (50.0, 0.0)],
            ["b-value 0", "b-value 50"],
        ),
        (
            [{"MRImageFrameTypeSequence": {"ComplexImageComponent": c}} for c in ("PHASE", "REAL")],
            ["component PHASE", "component REAL"],
        ),
        (
            [{"FrameContentSequence": {"FrameAcquisitionNumber": n}} for n in (1, 2)],
            ["acquisition 1", "acquisition 2"],
        ),
        (
            [
                {"CardiacSynchronizationSequence": {"NominalCardiacTriggerDelayTime": ms}}
                for ms in (0.0, 41.5)
            ],
            ["heart phase 0", "heart phase 41.5"],
        ),
    ],
)
def test_functional_groups_tell_frames_apart(
    groups: list[dict[str, dict[str, Any]]],
    names: list[str],
    make_series: Series,
    make_enhanced: Enhanced,
) -> None:
    slices = make_series()
    pairs = [(each, group) for each in slices for group in groups]
    enhanced = make_enhanced([each for each, _ in pairs], [group for _, group in pairs])
    assert [volume.part for volume in volumes_of([enhanced])] == names


def test_kinds_of_frames_tell_them_apart_and_the_object_keeps_its_own(
    make_series: Series, make_enhanced: Enhanced
) -> None:
    kinds = [["ORIGINAL", "PRIMARY", "T1", kind] for kind in ("M", "FIELD_MAP")]
    groups = [{"MRImageFrameTypeSequence": {"FrameType": kind}} for kind in kinds]
    pairs = [(each, group) for each in make_series() for group in groups]
    enhanced = make_enhanced([each for each, _ in pairs], [group for _, group in pairs])
    enhanced.ImageType = ["ORIGINAL", "PRIMARY", "T1", "MIXED"]
    parts = {volume.part for volume in volumes_of([enhanced])}
    assert parts == {f"kind ORIGINAL\\PRIMARY\\T1\\{kind}" for kind in ("M", "FIELD_MAP")}
    assert enhanced.ImageType == ["ORIGINAL", "PRIMARY", "T1", "MIXED"]


def test_dimensions_that_nobody_knows_tell_frames_apart(
    make_series: Series, make_enhanced: Enhanced
) -> None:
    slices = make_series()
    content = [
        {"FrameContentSequence": {"DimensionIndexValues": [1, k + 1, other]}}
        for k in range(5)
        for other in (1, 2)
    ]
    enhanced = make_enhanced([each for each in slices for _ in (1, 2)], content)
    enhanced.DimensionIndexSequence = []
    for pointer in (0x00209056, 0x00209057, 0x20051011):
        item = Dataset()
        item.DimensionIndexPointer = pointer
        enhanced.DimensionIndexSequence.append(item)
    assert [volume.part for volume in volumes_of([enhanced])] == ["dimension 1", "dimension 2"]
    for frame in enhanced.PerFrameFunctionalGroupsSequence:
        frame.FrameContentSequence[0].DimensionIndexValues = [1, 1]  # fewer than dimensions
    with pytest.raises(InputError, match="each of its 5 positions is there as often"):
        volumes_of([enhanced])


def test_a_model_may_name_the_volume_that_it_takes(make_series: Series) -> None:
    slices = several(
        make_series,
        [{"TemporalPositionIdentifier": t, "EchoTime": e} for t in (1, 2) for e in (10, 20)],
    )
    volume = volume_of(slices, Intake(part="echo time 20, time 1"))
    assert volume.part == "time 1, echo time 20"
    assert volume.voxels.max() == pytest.approx(10, abs=0.01)
    with pytest.raises(InputError, match='has 2 volumes "time 2", and the model takes one'):
        volume_of(slices, Intake(part="time 2"))
    with pytest.raises(InputError, match='has no volumes "time 3"'):
        volume_of(slices, Intake(part="time 3"))
    with pytest.raises(InputError, match=r'has no volumes "time 1".*: a single one'):
        volume_of(make_series(), Intake(part="time 1"))


def test_a_model_may_name_a_volume_by_what_did_not_part_it(make_series: Series) -> None:
    slices = several(
        make_series,
        [
            {"ImageType": ["ORIGINAL", "PRIMARY", "DIFFUSION"], "DiffusionBValue": 0.0},
            {"ImageType": ["ORIGINAL", "PRIMARY", "TRACEW"], "DiffusionBValue": 1000.0},
            {"ImageType": ["DERIVED", "PRIMARY", "ADC"]},
        ],
    )
    volume = volume_of(slices, Intake(part="b-value 1000"))
    assert volume.part == "kind ORIGINAL\\PRIMARY\\TRACEW"
    assert volume.voxels.max() == pytest.approx(10, abs=0.01)
    assert volume_of(slices, Intake(part="kind ORIGINAL\\PRIMARY\\TRACEW, b-value 1000"))
    for part, count in (("b-value 500", "no"), ("b-value not stated", "no"), ("", "but 3")):
        with pytest.raises(InputError, match=count):
            volume_of(slices, Intake(part=part))
    for each in slices:
        each.DiffusionBValue = 1000.0
    with pytest.raises(InputError, match='has 3 volumes "b-value 1000", and the model takes one'):
        volume_of(slices, Intake(part="b-value 1000"))


def test_a_volume_whose_slices_differ_in_it_is_not_named_by_it(make_series: Series) -> None:
    slices = make_series()
    for each in slices:
        each.Modality, each.DiffusionBValue = "MR", 1000.0
    assert volume_of(slices, Intake(part="b-value 1000"))
    slices[2].DiffusionBValue = 0.0
    with pytest.raises(InputError, match='has no volumes "b-value 1000"'):
        volume_of(slices, Intake(part="b-value 1000"))


def test_files_in_memory_are_let_go_slice_by_slice_and_the_volume_is_the_same(
    make_series: Series,
) -> None:
    series = make_series(shape_kji=(4, 200, 210))  # pixel data that are worth no copy
    for each in series:
        each.RescaleSlope, each.RescaleIntercept = 1, -5
    expected = volume_of(series).voxels
    assert expected.dtype == np.int16
    images, files, left = [], [], []
    for each in series:
        file = io.BytesIO()
        each.save_as(file, enforce_file_format=True)
        octets = mmap.mmap(-1, len(file.getvalue()))
        octets[:] = file.getvalue()
        images.append(read_object(Path("a.dcm"), octets=octets))
        files.append(weakref.ref(octets))
        del octets

    class Watched(PlanesInMemory):
        def put(self, k: int, plane: np.ndarray) -> None:
            super().put(k, plane)
            left.append(sum(each() is not None for each in files))

    assert all(each() is not None for each in files)
    volume = volume_of(images, planes=Watched)
    assert np.array_equal(volume.voxels, expected)
    assert left[-1] < len(files)
    assert [each() for each in files] == [None] * 4
    assert all("PixelData" not in each for each in volume.headers)
    assert all("PixelData" in each for each in series)
