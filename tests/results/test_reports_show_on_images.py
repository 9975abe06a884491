"""Each finding has a point on an image, for viewers that draw no other coordinates."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicomai.findings import Findings

ORIENTATIONS = ["axial", "coronal", "sagittal", "prone", "oblique"]


def _report(study: Any, findings: Findings) -> Dataset:
    ((report,),) = (study.by_modality(findings, ("SEG", "SR"))["SR"],)
    return pydicom.dcmread(io.BytesIO(report))


def _groups(report: Dataset) -> Iterator[tuple[str, Dataset]]:
    for part in report.ContentSequence:
        for group in part.get("ContentSequence", ()):
            if group.ConceptNameCodeSequence[0].CodeValue == "125007":
                yield str(group.ContentSequence[0].TextValue), group


def _shown(report: Dataset) -> dict[str, tuple[str, tuple[float, float]]]:
    """Tracking identifier to SOP Instance UID, column and row, as a 2-D viewer reads it."""
    found = {}
    for tracking_id, group in _groups(report):
        # What OHIF does: the first coordinates in a group are those of all of it.
        first = next(each for each in group.ContentSequence if each.ValueType.startswith("SCOORD"))
        assert (first.ValueType, first.GraphicType) == ("SCOORD", "POINT"), tracking_id
        image = first.ContentSequence[0].ReferencedSOPSequence[0]
        found[tracking_id] = (image.ReferencedSOPInstanceUID, tuple(first.GraphicData))
    return found


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_point_lies_on_what_it_shows(study_lying: Any, found: Any, orientation: str) -> None:
    lying = study_lying(orientation)
    findings = replace(found.everything(lying), classifications=())
    shown = _shown(_report(lying, findings))
    uids = [each.SOPInstanceUID for each in lying.headers]
    masks = {each.tracking_id: each.mask for each in findings.segments if each.mask.any()}
    masks["nodule 1"] = findings.detections[0].mask
    for tracking_id, mask in masks.items():
        uid, (column, row) = shown[tracking_id]
        k = uids.index(uid)
        assert mask[k].sum() == mask.sum(axis=(1, 2)).max()
        assert mask[k, int(row), int(column)]
    # Balls and boxes were put there by indices: pixel (0, 0) reaches from 0 to 1.
    assert shown["nodule 2"][0] == uids[6]
    np.testing.assert_allclose(shown["nodule 2"][1], (25.0, 12.5), atol=1e-4)
    assert shown["nodule 3"][0] == uids[3]
    np.testing.assert_allclose(shown["nodule 3"][1], (7.0, 6.0), atol=1e-4)


def test_the_point_of_a_lung_keeps_away_from_its_edge(study: Any, found: Any) -> None:
    findings = replace(found.everything(study), classifications=())
    _, (column, row) = _shown(_report(study, findings))["left lung"]
    left = findings.segments[1].mask  # rows 6 to 17, columns 18 to 30
    assert left.any(axis=(0, 2)).nonzero()[0][[0, -1]].tolist() == [6, 17]
    assert min(row - 6, 18 - row, column - 18, 31 - column) >= 5.5


def test_a_lung_that_bends_has_its_point_inside(study: Any, found: Any) -> None:
    findings = replace(found.everything(study), classifications=(), detections=())
    bent = np.zeros(study.grid.shape_kji, bool)
    bent[4, 3:25, 3:6] = bent[4, 3:6, 3:30] = bent[4, 22:25, 3:30] = True  # its middle is empty
    one = replace(findings.segments[0], mask=bent)
    uid, (column, row) = _shown(_report(study, replace(findings, segments=(one,))))["right lung"]
    assert uid == study.headers[4].SOPInstanceUID
    assert bent[4, int(row), int(column)]


def test_a_ball_beyond_the_images_is_shown_at_their_edge(study: Any, found: Any) -> None:
    ball = found.ball(study, "nodule 1", (-2.0, 12.0, 40.0))
    uid, point = _shown(_report(study, replace(found.nothing(study), detections=(ball,))))[
        "nodule 1"
    ]
    assert uid == study.headers[0].SOPInstanceUID
    np.testing.assert_allclose(point, (34.0, 12.5), atol=1e-4)


def test_only_a_report_whose_findings_have_places_is_one_of_measurements(
    study: Any, xray: Any, found: Any
) -> None:
    """OHIF fails at an Imaging Measurement Report that has a group without coordinates."""
    everything = found.everything(study)
    verdict = replace(found.nothing(xray), classifications=(found.opacity(present=True),))
    titles = {
        "regions": _report(study, replace(everything, classifications=())),
        "box": _report(xray, found.on_xray(xray)),
        "regions and a verdict": _report(study, everything),
        "verdict": _report(xray, verdict),
        "nothing": _report(study, found.nothing(study)),
        "not analysed": _report(study, replace(found.nothing(study), not_analysed="Too young.")),
    }
    assert {
        name: report.ConceptNameCodeSequence[0].CodeMeaning for name, report in titles.items()
    } == {
        "regions": "Imaging Measurement Report",
        "box": "Imaging Measurement Report",
        "regions and a verdict": "AI Results Report",
        "verdict": "AI Results Report",
        "nothing": "AI Results Report",
        "not analysed": "AI Results Report",
    }


def test_every_item_of_a_report_stands_by_itself(study: Any, found: Any) -> None:
    """In a flow of words viewers leave out what each number is; images alone are one."""

    def containers(holder: Dataset) -> Iterator[Dataset]:
        for item in holder.get("ContentSequence", ()):
            yield from containers(item)
            if item.ValueType == "CONTAINER":
                yield item

    report = _report(study, found.everything(study))
    flows = [
        item.ConceptNameCodeSequence[0].CodeMeaning
        for item in (report, *containers(report))
        if item.ContinuityOfContent != "SEPARATE"
    ]
    assert flows == ["Image Library Group"]
