"""Frames of enhanced objects lie where their functional groups say, whatever their order."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.tag import Tag
from pydicom.uid import (
    BreastTomosynthesisImageStorage,
    JPEGLSLossless,
    LegacyConvertedEnhancedCTImageStorage,
    RLELossless,
    XRay3DAngiographicImageStorage,
    XRay3DCraniofacialImageStorage,
)

from dicomai.errors import InputError
from dicomai.imaging.series import read_object
from dicomai.imaging.volume import volume_of, volumes_of

Series = Callable[..., list[Dataset]]
Enhanced = Callable[..., Dataset]

OBLIQUE = {"row": (0.6, 0.8, 0.0), "column": (0.0, 0.0, -1.0)}


def test_frames_in_any_order_make_the_volume_of_their_single_images(
    make_series: Series, make_enhanced: Enhanced
) -> None:
    slices = make_series(lambda lps: lps[..., 0], order=(3, 0, 4, 1, 2), **OBLIQUE)
    classic = volume_of(slices)
    enhanced = make_enhanced(slices)
    volume = volume_of([enhanced])
    np.testing.assert_allclose(volume.grid.index_to_lps, classic.grid.index_to_lps)
    np.testing.assert_array_equal(volume.voxels, classic.voxels)
    assert volume.grid.frame_numbers == (2, 4, 5, 1, 3)
    assert set(volume.grid.sop_instance_uids) == {enhanced.SOPInstanceUID}
    assert volume.headers == (enhanced,)
    assert classic.grid.frame_numbers == ()


@pytest.mark.parametrize(
    "sop_class",
    [
        BreastTomosynthesisImageStorage,
        XRay3DAngiographicImageStorage,
        XRay3DCraniofacialImageStorage,
        LegacyConvertedEnhancedCTImageStorage,
    ],
)
def test_slices_of_tomosynthesis_and_of_3d_x_rays_make_a_volume(
    make_series: Series, make_enhanced: Enhanced, sop_class: str
) -> None:
    slices = make_series(lambda lps: lps[..., 1], order=(1, 0, 2, 4, 3), **OBLIQUE)
    projected = {"XRay3DFrameTypeSequence": {"FrameType": ["DERIVED", "PRIMARY", "MAX_IP"]}}
    primary = {"XRay3DFrameTypeSequence": {"FrameType": ["ORIGINAL", "PRIMARY", "TOMOSYNTHESIS"]}}
    enhanced = make_enhanced(slices * 2, [primary] * 5 + [projected] * 5)
    enhanced.SOPClassUID = sop_class
    volumes = volumes_of([enhanced])
    assert [each.part for each in volumes] == [
        "kind DERIVED\\PRIMARY\\MAX_IP",
        "kind ORIGINAL\\PRIMARY\\TOMOSYNTHESIS",
    ]
    np.testing.assert_array_equal(volumes[1].voxels, volume_of(slices).voxels)
    np.testing.assert_allclose(volumes[1].grid.index_to_lps, volume_of(slices).grid.index_to_lps)
    assert volumes[1].grid.frame_numbers == (2, 1, 3, 5, 4)


def test_a_mammogram_made_of_a_tomosynthesis_is_no_slice_of_it(
    make_series: Series, make_enhanced: Enhanced
) -> None:
    *slices, beyond = make_series(shape_kji=(6, 4, 5))
    stack, made = make_enhanced(slices), make_enhanced([beyond])
    for each in (stack, made):
        each.SOPClassUID = BreastTomosynthesisImageStorage
    made.ImageType = ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"]
    assert volume_of([stack, made]).voxels.shape == (5, 4, 5)
    with pytest.raises(InputError, match=r"no slices\. Send these"):
        volume_of([made])


def test_a_volume_may_lie_in_several_objects(make_series: Series, make_enhanced: Enhanced) -> None:
    slices = make_series(lambda lps: lps[..., 2], shape_kji=(6, 4, 5))
    upper, lower = make_enhanced(slices[3:]), make_enhanced(slices[:3])
    volume = volume_of([upper, lower])
    assert volume.grid.frame_numbers == (1, 2, 3, 1, 2, 3)
    assert volume.grid.sop_instance_uids == (
        *[lower.SOPInstanceUID] * 3,
        *[upper.SOPInstanceUID] * 3,
    )
    np.testing.assert_array_equal(volume.voxels, volume_of(slices).voxels)
    assert volume.headers == (lower, upper)


def test_every_frame_has_its_own_rescale(make_series: Series, make_enhanced: Enhanced) -> None:
    slices = make_series()
    for number, each in enumerate(slices):
        del each.RescaleSlope, each.RescaleIntercept
        each.RescaleSlope, each.RescaleIntercept = 0.5 + number, 10 * number
        each.PixelData = np.full((6, 7), 100, "<i2").tobytes()
    volume = volume_of([make_enhanced(slices)])
    np.testing.assert_allclose(volume.voxels[:, 0, 0], [50, 160, 270, 380, 490])


def test_a_frame_with_an_empty_group_has_what_all_share(
    make_series: Series, make_enhanced: Enhanced
) -> None:
    enhanced = make_enhanced(make_series())
    frames = enhanced.PerFrameFunctionalGroupsSequence
    rescale = frames[0].PixelValueTransformationSequence[0]
    rescale.RescaleSlope, rescale.RescaleIntercept = 2, -1000
    enhanced.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [rescale]
    for frame in frames:
        del frame.PixelValueTransformationSequence
        frame.PixelValueTransformationSequence = []
    enhanced.PixelData = np.full(len(frames) * 6 * 7, 100, "<i2").tobytes()
    np.testing.assert_array_equal(volume_of([enhanced]).voxels, -800)


def test_frames_of_which_some_are_not_rescaled_are_refused(
    make_series: Series, make_enhanced: Enhanced
) -> None:
    enhanced = make_enhanced(make_series())
    del enhanced.PerFrameFunctionalGroupsSequence[3].PixelValueTransformationSequence
    with pytest.raises(InputError) as error:
        volume_of([enhanced])
    assert "has slices with RescaleSlope side by side with others without" in error.value.sentence
    assert f"Frame 4 of object {enhanced.SOPInstanceUID}" in error.value.sentence


def test_frames_that_are_only_mapped_to_the_real_world_are_noted(
    make_series: Series, make_enhanced: Enhanced
) -> None:
    groups = [
        {"RealWorldValueMappingSequence": {"RealWorldValueSlope": 0.25 + (number == 3)}}
        for number in range(5)
    ]
    enhanced = make_enhanced(make_series(), groups)
    assert volume_of([enhanced]).warnings == ()
    for each in enhanced.PerFrameFunctionalGroupsSequence:
        del each.PixelValueTransformationSequence
    with pytest.raises(InputError, match=r"Mapping differs, as Frame 4 of object"):
        volume_of([enhanced])
    for each in enhanced.PerFrameFunctionalGroupsSequence:
        each.RealWorldValueMappingSequence[0].RealWorldValueSlope = 0.25
    (warning,) = volume_of([enhanced]).warnings
    assert "by Real World Value Mapping alone, which was not applied" in warning


def test_frames_of_two_echoes_are_no_volume(make_series: Series, make_enhanced: Enhanced) -> None:
    groups = [{"MREchoSequence": {"EffectiveEchoTime": time}} for time in (30.0,) * 3 + (90.0,) * 2]
    with pytest.raises(InputError, match="with echo times from 30 to 90 ms"):
        volume_of([make_enhanced(make_series(), groups)])


def test_stacks_are_volumes_of_their_own(make_series: Series, make_enhanced: Enhanced) -> None:
    axial = make_series(lambda lps: lps[..., 1])
    oblique = make_series(lambda lps: lps[..., 1], **OBLIQUE)
    groups = [{"FrameContentSequence": {"StackID": stack}} for stack in "1212121212"]
    frames = [each for pair in zip(axial, oblique, strict=True) for each in pair]
    one, two = volumes_of([make_enhanced(frames, groups)])
    assert (one.part, two.part) == ("stack 1", "stack 2")
    np.testing.assert_array_equal(one.voxels, volume_of(axial).voxels)
    np.testing.assert_array_equal(two.voxels, volume_of(oblique).voxels)
    assert two.grid.frame_numbers[0] in (2, 10)


def test_one_dimension_tells_volumes_apart_as_several_do(
    make_series: Series, make_enhanced: Enhanced
) -> None:
    slices = make_series()
    groups = [{"FrameContentSequence": {"DimensionIndexValues": [t]}} for t in (1, 2) * 5]
    enhanced = make_enhanced([each for each in slices for _ in "12"], groups)
    dimension = Dataset()
    dimension.DimensionIndexPointer = Tag("TemporalPositionIndex")
    enhanced.DimensionIndexSequence = [dimension]
    volumes = volumes_of([enhanced])
    assert [each.grid.frame_numbers for each in volumes] == [(1, 3, 5, 7, 9), (2, 4, 6, 8, 10)]


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless], ids=lambda uid: uid.keyword)
def test_compressed_frames_are_found_each(
    syntax: str, make_series: Series, make_enhanced: Enhanced
) -> None:
    enhanced = make_enhanced(make_series())
    plain = volume_of([enhanced]).voxels
    enhanced.compress(syntax, generate_instance_uid=False)
    np.testing.assert_array_equal(volume_of([enhanced]).voxels, plain)
    enhanced.NumberOfFrames = 6
    groups = enhanced.PerFrameFunctionalGroupsSequence
    groups.append(copy.deepcopy(groups[4]))
    groups[5].PlanePositionSequence[0].ImagePositionPatient[2] += 2.5
    with pytest.raises(InputError, match="decoded"):
        volume_of([enhanced])


def test_padding_counts_in_every_frame(make_series: Series, make_enhanced: Enhanced) -> None:
    slices = make_series(lambda lps: lps[..., 2])
    lowest = volume_of(slices).voxels.min()
    for each in slices:
        each.PixelPaddingValue = -20000
        pixels = np.frombuffer(each.PixelData, "<i2").reshape(6, 7).copy()
        pixels[0] = -20000
        each.PixelData = pixels.tobytes()
    voxels = volume_of([make_enhanced(slices)]).voxels
    np.testing.assert_allclose(voxels[:, 0], lowest)
    assert voxels.max() > lowest


def test_a_frame_that_does_not_say_where_it_lies_is_named(
    make_series: Series, make_enhanced: Enhanced
) -> None:
    enhanced = make_enhanced(make_series())
    del enhanced.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence
    with pytest.raises(InputError) as error:
        volume_of([enhanced])
    assert error.value.sentence.startswith(f"Frame 4 of object {enhanced.SOPInstanceUID} ")
    assert "has no ImagePositionPatient" in error.value.sentence
    del enhanced.PerFrameFunctionalGroupsSequence[3]
    with pytest.raises(InputError, match="has 5 frames and says of 4 where they lie"):
        volume_of([enhanced])


def test_an_enhanced_object_without_functional_groups_is_refused(sample_data: Path) -> None:
    path = sample_data / "transfer-syntaxes" / "emri-multiframe" / "emri_small.dcm"
    with pytest.raises(InputError, match="has 10 frames and says of 0 where they lie"):
        volume_of([read_object(path)])


def test_an_enhanced_ct_in_other_units_is_refused(sample_data: Path) -> None:
    blood_flow = read_object(sample_data / "modalities" / "enhanced-ct" / "eCT_Supplemental.dcm")
    with pytest.raises(InputError, match=r"Frame 2 of object .* is CT in US"):
        volumes_of([blood_flow])


def test_two_frames_at_one_place_are_named(make_series: Series, make_enhanced: Enhanced) -> None:
    slices = make_series(first=(0, 0, 0))
    enhanced = make_enhanced([*slices, slices[2]])
    with pytest.raises(InputError) as error:
        volume_of([enhanced])
    uid = enhanced.SOPInstanceUID
    told = f"2 slices at 5.0 mm (frame 3 of object {uid} and frame 6 of object {uid})"
    assert told in error.value.sentence
