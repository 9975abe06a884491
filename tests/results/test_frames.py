"""Frames that are laid out and written by ourselves are read by others as they were meant."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement

from dicomai.results.encode import encode, written

FORMS = ["SEG", "SEG:ALL-FRAMES", "SEG:FRACTIONAL", "SEG:LABELMAP"]
OTHERS = ("SC", "KO", "PR", "PM", "RTSTRUCT", "PDF", "SR:ENHANCED", "SR:TEXT", "SR")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["Muster^Erika", "Müller^Zoë=山田^太郎"])
def test_results_are_written_as_pydicom_would(study: Any, found: Any, form: Any, name: str) -> None:
    right, *others = found.everything(study).segments
    likely = np.linspace(0.5, 1, int(right.mask.sum()), dtype=np.float32)
    findings = replace(
        found.everything(study), segments=(replace(right, probability=likely), *others)
    )
    headers = copy.deepcopy(study.headers)
    for header in headers:
        header.SpecificCharacterSet, header.PatientName = "ISO_IR 192", name
    wanted = (form, *OTHERS) if form == "SEG" else (form, "SR")
    for result in encode(findings, headers, found.job, study.context, wanted, study.voxels):
        plain = io.BytesIO()
        pydicom.dcmwrite(plain, result, enforce_file_format=True)
        assert written(result) == plain.getvalue()


def test_group_lengths_are_left_out_wherever_they_stand(study: Any, found: Any) -> None:
    (plain,) = encode(found.nothing(study), study.headers, found.job, study.context)
    wanted = written(plain)
    for holder in (plain, plain.ContentSequence[-1]):
        holder.add(DataElement(0x00400000, "UL", 12))
    assert written(plain) == wanted


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
