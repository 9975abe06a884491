"""What the rules see of a study: its images, by series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dicomai.dicom.header import Attributes

Origin = Literal["received", "retrieved", "produced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The newest version of an object, as the catalogue has it.

    Attributes
    ----------
    header_digest, pixel_digest
        Its version digest, see `dicomai.dicom.version`.
    node
        The name of the node that sent it.
    """

    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    header_digest: str
    pixel_digest: str | None
    origin: Origin
    node: str
    attributes: Attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The images of a series, at least one, in the order of their UIDs."""

    series_instance_uid: str
    images: tuple[Image, ...]

    @property
    def title(self) -> str:
        """How a sentence calls it: number, description and UID."""
        first = self.images[0].attributes
        number, description = first.get("SeriesNumber"), first.get("SeriesDescription")
        named = f" {number:.12g}" if isinstance(number, float | int) else ""
        named += f' "{description}"' if isinstance(description, str) and description else ""
        return f"series{named} ({self.series_instance_uid})"


def series_of(images: Iterable[Image]) -> tuple[Series, ...]:
    """Return images sorted into their series, in the order of the UIDs."""
    found: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        found[image.series_instance_uid].append(image)
    return tuple(
        Series(
            series_instance_uid=uid,
            images=tuple(sorted(found[uid], key=lambda image: image.sop_instance_uid)),
        )
        for uid in sorted(found)
    )
