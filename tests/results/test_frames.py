"""Frames that are laid out and written by ourselves are read by others as they were meant."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest

from dicomai.results.encode import encode, written

FORMS = ["SEG", "SEG:ALL-FRAMES", "SEG:FRACTIONAL", "SEG:LABELMAP"]


@pytest.mark.parametrize("form", FORMS)
def test_a_segmentation_is_written_as_pydicom_would(study: Any, found: Any, form: Any) -> None:
    findings = found.everything(study)
    for seg in encode(findings, study.headers, found.job, study.context, (form, "SR"))[:-1]:
        plain = io.BytesIO()
        pydicom.dcmwrite(plain, seg, enforce_file_format=True)
        assert written(seg) == plain.getvalue()


@pytest.mark.parametrize("shape", [(5, 7, 9), (4, 8, 8), (6, 5, 3), (1, 3, 5)])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("form", FORMS[:3])
def test_highdicom_reads_any_masks_back(
    study_of_shape: Any, found: Any, shape: tuple[int, int, int], count: int, form: Any
) -> None:
    """Frames end inside of bytes, segments overlap, slices between are empty."""
    study = study_of_shape(shape)
    rng = np.random.default_rng([*shape, count])
    segment = found.everything(study_of_shape((9, 28, 34))).segments[0]
    segments = []
    for number in range(count):
        mask = rng.random(shape) < 0.4
        mask[rng.random(shape[0]) < 0.4] = False
        mask[number % shape[0], 1, 1] = True
        segments.append(replace(segment, mask=mask, label=f"s{number}", tracking_id=f"s{number}"))
    findings = replace(found.nothing(study), segments=tuple(segments))
    made = study.by_modality(findings, (form, "SR"))
    seg = hd.seg.segread(io.BytesIO(made["SEG"][0]))
    read = seg.get_pixels_by_source_instance(
        [str(uid) for uid in study.grid.sop_instance_uids],
        assert_missing_frames_are_empty=True,
        rescale_fractional=True,
    )
    for number, each in enumerate(segments):
        np.testing.assert_array_equal(read[..., number] > 0.5, each.mask)


def test_frames_are_a_volume_only_where_no_slice_is_left_out(study: Any, found: Any) -> None:
    segment = found.everything(study).segments[0]
    kinds = {}
    for name, slices in {"a block": [2, 3, 4], "a gap": [2, 3, 6]}.items():
        mask = np.zeros(study.grid.shape_kji, bool)
        mask[slices, 3:6, 3:6] = True
        findings = replace(found.nothing(study), segments=(replace(segment, mask=mask),))
        seg = encode(findings, study.headers, found.job, study.context)[0]
        kinds[name] = seg.get("DimensionOrganizationType")
    assert kinds == {"a block": "3D", "a gap": None}
