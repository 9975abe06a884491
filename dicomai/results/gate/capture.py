"""A picture of findings as Secondary Capture: that it can be shown, and can't be mistaken."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from pydicom.dataset import Dataset

from dicomai.findings import Detection, Findings, Segment
from dicomai.imaging.geometry import Grid
from dicomai.results.gate.error import refuse
from dicomai.results.gate.planes import images_of

_PIXELS: Final[dict[str, object]] = {
    "SamplesPerPixel": 3,
    "PhotometricInterpretation": "RGB",
    "PlanarConfiguration": 0,
    "BitsAllocated": 8,
    "BitsStored": 8,
    "HighBit": 7,
    "PixelRepresentation": 0,
}


# How planes hang: the patient's side at the right and at the lower edge (PS3.3 C.7.6.1.1.1).
_HUNG: Final = {"axial": ["L", "P"], "coronal": ["L", "F"], "sagittal": ["P", "F"]}
_PLANE: Final = re.compile(r"\b(axial|coronal|sagittal)-([0-9]+):")


def check_capture(result: Dataset, findings: Findings, sources: Sequence[Dataset]) -> None:
    """Check that a picture is whole, says that words are burnt in, and shows what it is about."""
    uid = str(result.SOPInstanceUID)
    for keyword, wanted in _PIXELS.items():
        if result.get(keyword) != wanted:
            refuse("attributes", uid, f"{keyword} is {result.get(keyword)}, not {wanted}")
    if result.BurnedInAnnotation != "YES":
        refuse("status", uid, "it does not say that words are burnt in")
    if result.ImageType[0] != "DERIVED":
        refuse("status", uid, "it claims to be an original image")
    if "not for measurement or primary diagnosis" not in str(result.get("DerivationDescription")):
        refuse("status", uid, "it does not say what it is not for")
    _shows(result, uid, findings, sources)
    size = int(result.Rows) * int(result.Columns) * 3
    if len(result.PixelData) != size + size % 2:
        refuse("readable", uid, "it does not hold the pixels that it announces")
    pixels = np.frombuffer(result.PixelData, np.uint8)[:size].reshape(-1, 3).astype(np.uint32)
    shown = set(np.unique(pixels[:, 0] << 16 | pixels[:, 1] << 8 | pixels[:, 2]).tolist())
    found: tuple[Segment | Detection, ...] = (*findings.segments, *findings.detections)
    colours = {red << 16 | green << 8 | blue for red, green, blue in (e.display_rgb for e in found)}
    if colours and not colours & shown:
        refuse("content", uid, "its legend has the colour of nothing that was looked for")
    if len(shown) < 3:
        refuse("content", uid, "it is blank")


def _shows(result: Dataset, uid: str, findings: Findings, sources: Sequence[Dataset]) -> None:
    """Check that it names the slice that it shows, or all that it cuts, and how it hangs."""
    named = [
        (str(each.ReferencedSOPInstanceUID), int(each.get("ReferencedFrameNumber") or 0))
        for each in result.SourceImageSequence
    ]
    sides = list(result.get("PatientOrientation") or [])
    if not isinstance(findings.where, Grid):
        said = [str(each).upper() for each in sources[0].get("PatientOrientation") or ()]
        if sides and sides != said:
            refuse("geometry", uid, "it says that it hangs otherwise than its image")
        return
    plane = _PLANE.search(str(result.DerivationDescription))
    if plane is None or sides != _HUNG[plane[1]]:
        refuse("geometry", uid, "it hangs otherwise than its plane does")
    images, number = images_of(findings), int(plane[2])
    every = {(str(each.SOPInstanceUID), 0) for each in sources}
    if set(named) != every and named != images[number - 1 : number]:
        refuse("references", uid, f"its source is not slice {number}, which it shows")
