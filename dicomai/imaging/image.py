"""From the data set of a single image to the pixels that a model takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from dicomai.dicom.body_parts import LIMBS
from dicomai.errors import InputError
from dicomai.imaging.attributes import items_of, name_of, numbers, sop_class_name, text, whole
from dicomai.imaging.display import displayed, rgb
from dicomai.imaging.facts import Facts, body_part_of, facts_of, noted_of_part
from dicomai.imaging.frame import check_single_frame, header_of_only_frame
from dicomai.imaging.geometry import Plane
from dicomai.imaging.greyscale import check_greyscale
from dicomai.imaging.intake import PLAIN, Intake
from dicomai.imaging.modality import modality_values
from dicomai.imaging.pixels import stored_pixels

MODALITIES: Final = ("CR", "DX", "RG", "MG", "PX", "IO")
"""Of projection X-rays."""
PICTURES: Final = ("US", "ES", "XC", "GM", "DMS", "OP", "SC", "OT")
"""Of ultrasound, endoscopy, photographs, microscopy, dermoscopy, ophthalmology and captures."""
_CENTIMETRES: Final = 3
"""Of an ultrasound region (PS3.3 C.8.5.5.1.15)."""
_ROUNDED: Final = 1e-3
"""Relative: so near are two spacings of the detector, one of them with fewer decimals or in float32
on its way. A calibration corrects for how far the patient is from the detector: by percents."""
USUAL_ORIENTATION: Final = ("L", "F")
"""Frontal chest as it is hung: rows run to the patient's left, columns to the feet."""
_DIRECTION: Final = re.compile(r"[APRLHF]{1,3}")
"""Letters of a human's sides; animals have words of their own (PS3.3 C.7.6.1.1.1)."""
_AXES: Final = {"A": "AP", "P": "AP", "R": "RL", "L": "RL", "H": "HF", "F": "HF"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceImagePixels:
    """A single image that is no slice: a projection X-ray, ultrasound, photograph or capture.

    Attributes
    ----------
    plane
        Its size and spacing; it has no place in the patient.
    pixels
        (J, I) float32 in modality units, turned round for MONOCHROME1, so that what lets fewer
        X-rays pass is brighter; padding has the lowest value of what is no padding. As shown, from
        0 to 1, where the model takes it so. (J, I, 3) RGB from 0 to 1 for a model of colour.
    facts
        What the image says of patient and acquisition.
    headers
        Its data set; empty in a runner.
    """

    plane: Plane
    pixels: npt.NDArray[np.float32]
    facts: Facts
    series_instance_uid: str
    headers: tuple[Dataset, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def grey(self) -> npt.NDArray[np.float32]:
        """The pixels, (J, I); of a colour image its luminance (ITU-R BT.601)."""
        if self.pixels.ndim == 2:
            return self.pixels
        return np.asarray(self.pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32))


def image_of(dataset: Dataset, intake: Intake = PLAIN) -> SourceImagePixels:
    """Return an image as a model wants it.

    Raises
    ------
    InputError
        It is a slice or has several frames, is in colour where the model takes grey or the other
        way round, lies on its side, or can't be decoded.
    """
    name, subject = name_of(dataset), text(dataset, "SOPInstanceUID")
    modality = text(dataset, "Modality")
    if not intake.colour:
        check_greyscale(dataset)
    check_single_frame(dataset)
    if modality not in MODALITIES + PICTURES:
        raise InputError(
            f"{name} ({sop_class_name(dataset)}, modality {modality or 'unknown'}) is no "
            "projection X-ray, ultrasound, photograph or capture, and the model takes one.",
            subject=subject,
        )
    noted = (*_check_hanging(dataset), *_inverted(dataset)) if modality in MODALITIES else ()
    header = header_of_only_frame(dataset)
    pixels = rgb(dataset) if intake.colour else _grey(dataset, header, intake)
    spacing_ji_mm, spacing_at = _spacing(header)
    return SourceImagePixels(
        plane=Plane(
            shape_ji=(pixels.shape[0], pixels.shape[1]),
            spacing_ji_mm=spacing_ji_mm,
            spacing_at=spacing_at,
            sop_instance_uid=subject,
            aspect_ji=_pair(dataset, "PixelAspectRatio") or (1.0, 1.0),
            runs_to=_runs_to(dataset),
        ),
        pixels=pixels,
        facts=facts_of(dataset),
        series_instance_uid=text(dataset, "SeriesInstanceUID"),
        headers=(dataset,),
        warnings=(*noted, *noted_of_part(dataset), *stored_pixels(dataset).noted()),
    )


def _grey(dataset: Dataset, header: Dataset, intake: Intake) -> npt.NDArray[np.float32]:
    values, padding = modality_values(dataset, header)
    pixels = values.astype(np.float32)
    kept = pixels if padding is None else pixels[~padding]
    if not kept.size:
        raise InputError(
            f"{name_of(dataset)} is nothing but padding.", subject=text(dataset, "SOPInstanceUID")
        )
    if intake.displayed:
        return displayed(pixels, padding, header)
    if text(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        # Low values are shown bright, so they are what is dense; the range stays the same.
        pixels = kept.max() + kept.min() - pixels
    if padding is not None:
        pixels[padding] = pixels[~padding].min()
    return pixels


def _spacing(
    dataset: Dataset,
) -> tuple[tuple[float, float] | None, Literal["patient", "detector", ""]]:
    """Return the spacing of rows and columns, mm, and where it holds (PS3.3 10.7.1.3).

    Pixel Spacing of an X-ray is calibrated where it says so or differs from that of the detector.
    """
    xray = text(dataset, "Modality") in MODALITIES
    pixel, imager = _pair(dataset, "PixelSpacing"), _pair(dataset, "ImagerPixelSpacing")
    if pixel:
        of_detector = imager is None or np.allclose(pixel, imager, rtol=_ROUNDED, atol=0)
        calibrated = text(dataset, "PixelSpacingCalibrationType") or not of_detector
        return pixel, "patient" if calibrated or not xray else "detector"
    if imager:
        return imager, "detector"
    regions = items_of(dataset, "SequenceOfUltrasoundRegions")
    if len(regions) == 1 and whole(regions[0], "PhysicalUnitsXDirection", 0) == _CENTIMETRES:
        (down,) = numbers(regions[0], "PhysicalDeltaY", 1)
        (across,) = numbers(regions[0], "PhysicalDeltaX", 1)
        if down and across and whole(regions[0], "PhysicalUnitsYDirection", 0) == _CENTIMETRES:
            return (abs(down) * 10, abs(across) * 10), "patient"
    return None, ""


def _pair(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    if not text(dataset, keyword):
        return None
    between_rows, between_columns = numbers(dataset, keyword, 2)
    return (between_rows, between_columns) if min(between_rows, between_columns) > 0 else None


def _inverted(dataset: Dataset) -> tuple[str, ...]:
    """Note an X-ray that shows dark what lets fewer X-rays pass (PS3.3 C.8.11.3.1.2).

    Writers mistake the sign more often than they mean it, so it turns nothing round.
    """
    sign = whole(dataset, "PixelIntensityRelationshipSign", 0)
    photometric = text(dataset, "PhotometricInterpretation")
    if sign != {"MONOCHROME1": -1, "MONOCHROME2": 1}.get(photometric):
        return ()
    told = (
        f"The image is {photometric} with Pixel Intensity Relationship Sign {sign}, so that bone "
        "is dark, other than in most X-rays; the model was given it as it is shown."
    )
    return (told,)


def _runs_to(dataset: Dataset) -> tuple[str, str] | None:
    """Return the sides to which rows and columns run; None where that is not said, or can't be."""
    said = text(dataset, "PatientOrientation").upper().split("\\")
    if len(said) != 2 or not all(map(_DIRECTION.fullmatch, said)):
        return None
    across, down = said
    return None if _AXES[across[0]] == _AXES[down[0]] else (across, down)


def _check_hanging(dataset: Dataset) -> tuple[str, ...]:
    """Refuse a frontal image that lies on its side or is mirrored; note what hangs otherwise.

    Only the first letter counts: an oblique LP is still hung to the left. Mammograms and lateral
    views are hung in other ways, which is theirs to say. So are limbs, whose side is not told by
    where it is in the image: a hand with its fingers up runs to R or L, and to H.
    """
    orientation = text(dataset, "PatientOrientation").upper().split("\\")
    if len(orientation) != 2 or not all(orientation):
        return ("The image does not say how it is hung (Patient Orientation); L\\F was assumed.",)
    across, down = orientation[0][0], orientation[1][0]
    said = "\\".join(orientation)
    if (across, down) == USUAL_ORIENTATION:
        return ()
    limb = body_part_of(dataset) in LIMBS
    if {across, down} <= set("LRFH") and not limb:
        raise InputError(
            f"{name_of(dataset)} is turned or mirrored (Patient Orientation {said}, where a model "
            "takes L\\F). Turn it at the workstation and send it again.",
            subject=text(dataset, "SOPInstanceUID"),
        )
    lateral = across in "AP" and down == "F"
    if lateral or text(dataset, "Modality") == "MG":
        return ()
    return (f"The image is hung {said} (Patient Orientation); the model was given it as it is.",)
