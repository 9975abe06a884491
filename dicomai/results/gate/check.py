"""The order of the checks: each object by itself, then all of them together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from pydicom.dataset import Dataset, FileDataset

from dicomai.findings import Findings
from dicomai.results.gate.capture import check_capture
from dicomai.results.gate.classes import (
    ENHANCED_SR,
    KO,
    LABELMAP,
    PDF,
    PM,
    PR,
    RTSTRUCT,
    SC,
    SEG,
    SEVERAL,
    SR,
    TEXT_SR,
)
from dicomai.results.gate.contours import check_contours, has_contours
from dicomai.results.gate.error import refuse
from dicomai.results.gate.header import check_header
from dicomai.results.gate.key_images import check_key_images, has_keys
from dicomai.results.gate.maps import check_maps, mapped
from dicomai.results.gate.marks import check_marks, has_marks
from dicomai.results.gate.page import check_page
from dicomai.results.gate.reading import opened, strictly_read
from dicomai.results.gate.report import check_plain_report, check_report
from dicomai.results.gate.voxels import Place, check_voxels
from dicomai.routing.route import ResultObject


def check(
    objects: Sequence[bytes | Path],
    findings: Findings,
    source_headers: Sequence[Dataset],
    *,
    charset_default: str = "",
    placeholder_ids: Collection[str] = (),
    wanted: Collection[ResultObject] = ("SEG", "SR"),
) -> None:
    """Return when the results of one analysis say what was found, about whom, and where.

    Parameters
    ----------
    objects
        The files as they would be sent, all results of the analysis.
    findings
        What was found.
    source_headers
        The data sets of the source images.
    charset_default
        What undeclared bytes above 127 in the sources are in.
    placeholder_ids
        Patient IDs that stand for none.
    wanted
        The kinds that were asked for.

    Raises
    ------
    GateError
        Names the object and the rule that it breaks.
    """
    read = [opened(each) for each in objects]
    by_class: dict[str, list[FileDataset]] = {}
    for each in read:
        by_class.setdefault(str(each.SOPClassUID), []).append(each)
    expected = _expected(findings, source_headers, wanted)
    counts = {sop_class: len(each) for sop_class, each in by_class.items()}
    if set(counts) != expected or any(counts[each] != 1 for each in expected - SEVERAL):
        refuse(
            "content",
            str(read[0].SOPInstanceUID) if read else "the set of results",
            f"the findings give {len(expected)} objects of classes {sorted(expected)}, and there "
            f"are {len(read)} of {sorted(by_class)}",
        )
    for each in read:
        with strictly_read(each):
            others = [other for other in read if other is not each]
            check_header(each, others, findings, source_headers, charset_default, placeholder_ids)
    (report,) = by_class[SR]
    places: dict[str, Place] = {}
    for sop_class in (LABELMAP, SEG):  # where there are both, the report refers to the latter
        if segs := by_class.get(sop_class):
            with strictly_read(segs[0]):
                places = check_voxels(segs, findings, source_headers, wanted)
    _check_shown(by_class, findings, source_headers)
    with strictly_read(report):
        others = [each for each in read if each is not report]
        check_report(report, others, places, findings, source_headers)


def _expected(
    findings: Findings, sources: Sequence[Dataset], wanted: Collection[ResultObject]
) -> set[str]:
    """Return the classes that there must be, and no others."""
    segmented = set()
    if _has_voxels(findings):
        labels = "SEG:LABELMAP" in wanted
        masks = not labels or any(
            each in wanted for each in ("SEG", "SEG:ALL-FRAMES", "SEG:FRACTIONAL")
        )
        segmented = {each for each, asked in ((SEG, masks), (LABELMAP, labels)) if asked}
    given: dict[ResultObject, tuple[str, Callable[[], object]]] = {
        "KO": (KO, lambda: has_keys(findings)),
        "PR": (PR, lambda: has_marks(findings, sources)),
        "PM": (PM, lambda: mapped(findings)),
        "RTSTRUCT": (RTSTRUCT, lambda: has_contours(findings)),
    }
    always: dict[ResultObject, str] = {
        "SC": SC, "PDF": PDF, "SR:ENHANCED": ENHANCED_SR, "SR:TEXT": TEXT_SR,
    }  # fmt: skip
    shown = {sop_class for kind, sop_class in always.items() if kind in wanted}
    for kind, (sop_class, has) in given.items():
        if kind in wanted and has():
            shown.add(sop_class)
    return {SR} | segmented | shown


def _check_shown(
    by_class: Mapping[str, Sequence[FileDataset]], findings: Findings, sources: Sequence[Dataset]
) -> None:
    """Check what is made beside masks and report."""
    for picture in by_class.get(SC, ()):
        with strictly_read(picture):
            check_capture(picture, findings, sources)
    for keys in by_class.get(KO, ()):
        with strictly_read(keys):
            check_key_images(keys, findings)
    for plain in (*by_class.get(ENHANCED_SR, ()), *by_class.get(TEXT_SR, ())):
        with strictly_read(plain):
            check_plain_report(plain, findings, numbers=plain.SOPClassUID == ENHANCED_SR)
    for page in by_class.get(PDF, ()):
        with strictly_read(page):
            check_page(page, findings, sources)
    for contours in by_class.get(RTSTRUCT, ()):
        with strictly_read(contours):
            check_contours(contours, findings, sources)
    if maps := by_class.get(PM, ()):
        with strictly_read(maps[0]):
            check_maps(maps, findings, sources)
    if states := by_class.get(PR, ()):
        with strictly_read(states[0]):
            check_marks(states, findings, sources)


def _has_voxels(findings: Findings) -> bool:
    return any(each.mask.any() for each in findings.segments) or any(
        each.mask is not None and each.mask.any() for each in findings.detections
    )
