"""What a model is given, in words that do without torch: a supervisor has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from pydicom import Dataset

from dicomai.findings import SourceImage
from dicomai.imaging.attributes import text
from dicomai.imaging.image import SourceImagePixels
from dicomai.imaging.volume import SourceVolume

Source: TypeAlias = SourceVolume | SourceImagePixels


def inputs_of(headers: Sequence[Dataset]) -> tuple[SourceImage, ...]:
    """Return the images that a model sees, as results name them."""
    return tuple(
        SourceImage(
            study_instance_uid=text(each, "StudyInstanceUID"),
            series_instance_uid=text(each, "SeriesInstanceUID"),
            sop_class_uid=text(each, "SOPClassUID"),
            sop_instance_uid=text(each, "SOPInstanceUID"),
        )
        for each in headers
    )
