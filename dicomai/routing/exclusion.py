"""Images that are never input of a model, unless a route allows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

from dicomai.dicom.header import EQUIPMENT, PIXELS, Attributes
from dicomai.routing.image import Image, Series
from dicomai.routing.route import Exclusion

OURS: Final = "dicomai"
"""Manufacturer or model in the Contributing Equipment of our results."""

_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
_SECONDARY: Final = (f"{_STORAGE}7", f"{_STORAGE}7.")
_RESULTS: Final = (f"{_STORAGE}66.", f"{_STORAGE}30", f"{_STORAGE}481.2")

Kind = Exclusion | Literal["no image"]

_SENTENCES: Final[dict[Kind, str]] = {
    "no image": "no image: it has no pixels",
    "produced": "our own result",
    "localizer": "a localizer",
    "secondary": "a secondary capture",
    "derived": "derived from other images",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """Images of one series that were left out for one reason."""

    series_instance_uid: str
    kind: Kind
    count: int
    sentence: str

    @property
    def reason(self) -> str:
        """Why, without what."""
        return _SENTENCES[self.kind]


def kind_of(image: Image) -> Kind | None:
    """Return why an image is no input by itself, None where it may be one."""
    if PIXELS not in image.attributes or "Rows" not in image.attributes:
        return "no image"
    if image.origin == "produced" or made_by_us(image.attributes):
        return "produced"
    types = [text.upper() for text in _texts(image.attributes, "ImageType")]
    if "LOCALIZER" in types:
        return "localizer"
    if image.sop_class_uid == _SECONDARY[0] or image.sop_class_uid.startswith(_SECONDARY[1]):
        return "secondary"
    derived = types[:1] == ["DERIVED"] and image.attributes.get("Modality") in ("CT", "MR")
    if derived or image.sop_class_uid.startswith(_RESULTS):
        return "derived"
    return None


def exclude(
    series: Series, allow: Collection[Exclusion]
) -> tuple[Series | None, tuple[Excluded, ...]]:
    """Return what is left of a series, None where nothing is, and what was left out and why.

    Parameters
    ----------
    series
        Any series of a study.
    allow
        The exclusions that a route lifts.
    """
    kinds = {image.sop_instance_uid: kind_of(image) for image in series.images}
    left = tuple(
        image
        for image in series.images
        if (kind := kinds[image.sop_instance_uid]) is None or kind in allow
    )
    counts = Counter(kind for kind in kinds.values() if kind is not None and kind not in allow)
    excluded = tuple(
        Excluded(
            series_instance_uid=series.series_instance_uid,
            kind=kind,
            count=count,
            sentence=f"{count} of {len(series.images)} objects of {series.title} left out: "
            f"{_SENTENCES[kind]}.",
        )
        for kind, count in sorted(counts.items())
    )
    remaining = Series(series_instance_uid=series.series_instance_uid, images=left)
    return (remaining if left else None), excluded


def not_seen(series: Series, allow: Collection[Exclusion]) -> tuple[str, ...]:
    """Return what shows the patient beside the images that a model gets, one sentence each."""
    _, excluded = exclude(series, allow)
    return tuple(each.sentence for each in excluded if each.kind in ("derived", "secondary"))


def made_by_us(attributes: Attributes) -> bool:
    """Tell whether an object says that dicomai made it, here or elsewhere."""
    return any(
        part.strip().casefold() == OURS
        for entry in _texts(attributes, EQUIPMENT)
        for part in entry.split("/")
    )


def _texts(attributes: Attributes, keyword: str) -> list[str]:
    value = attributes.get(keyword, "")
    if isinstance(value, str | float | int):
        return [str(value)]
    return [str(each) for each in value]
