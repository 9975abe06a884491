"""Results on slices whose headers are rounded: each frame says what its image says."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pydicom
import pytest
from scipy.spatial.transform import Rotation

from dicomai.imaging.frame import slice_of
from dicomai.imaging.stack import stack
from dicomai.results.gate import check


@pytest.mark.parametrize("form", ["SEG", "SEG:FRACTIONAL", "SEG:LABELMAP"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("flipped", [(), (2, 5)])
def test_rounded_slices_get_results_that_lie_on_them(
    form: Any, seed: int, flipped: tuple[int, ...], study: Any, found: Any
) -> None:
    row, column, normal = Rotation.random(rng=np.random.default_rng(seed)).as_matrix().T
    headers = copy.deepcopy(study.headers)
    for k, header in enumerate(headers):
        cosines = np.round(np.concatenate((row, column)), 3)
        cosines[k % 6] += 0.001 if k in flipped else 0
        header.ImageOrientationPatient = [f"{each:.3f}" for each in cosines]
        position = np.array([-61.25, -48.53, -200.0]) + 3.0 * k * normal
        header.ImagePositionPatient = [f"{each:.1f}" for each in position]
    grid = stack([slice_of(each) for each in headers], "1.2").grid
    rounded = replace(study, headers=headers, grid=grid)
    findings = found.everything(rounded)
    wanted = (form, "SR", "PM", "RTSTRUCT", "SC", "KO", "PR")
    files = rounded.files(findings, wanted)
    check(files, findings, headers, wanted=wanted)
    places = {
        (tuple(each.ImagePositionPatient), tuple(each.ImageOrientationPatient)) for each in headers
    }
    for raw in files[:2]:
        read = pydicom.dcmread(io.BytesIO(raw))
        if "PerFrameFunctionalGroupsSequence" not in read:
            continue
        shared = read.SharedFunctionalGroupsSequence[0]
        for groups in read.PerFrameFunctionalGroupsSequence:
            (orientation,) = (
                groups if "PlaneOrientationSequence" in groups else shared
            ).PlaneOrientationSequence
            position = groups.PlanePositionSequence[0].ImagePositionPatient
            assert (tuple(position), tuple(orientation.ImageOrientationPatient)) in places
