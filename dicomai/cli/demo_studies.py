"""What the demonstration sends: studies that it makes, or those of a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dicomai.phantom.chest import ChestPhantom
from dicomai.phantom.ct import write_ct
from dicomai.phantom.shell import Shell
from dicomai.phantom.xray import write_xray
from dicomai.routing.image import Image, Series, series_of
from dicomai.service.folder import Outcome, read_folder

_SEED: Final = 7
_NODULES_MM: Final = (12.0, 17.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SentSeries:
    """A series that is sent."""

    series_instance_uid: str
    title: str
    files: dict[str, Path]
    """By SOP Instance UID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentStudy:
    """A study that is sent.

    Attributes
    ----------
    title
        A few words that tell it from the others.
    """

    study_instance_uid: str
    title: str
    series: tuple[SentSeries, ...]

    @property
    def files(self) -> dict[str, Path]:
        """All its files, by SOP Instance UID."""
        return {uid: path for each in self.series for uid, path in each.files.items()}


def make_phantoms(folder: Path) -> str:
    """Write a chest CT with two nodules, and a chest X-ray of the same patient.

    Returns
    -------
    :
        What is in them, as a sentence.
    """
    phantom = ChestPhantom(_SEED, nodule_diameters_mm=_NODULES_MM)
    ct = Shell(accession_number="DEMO-CT", study_id="1")
    made = write_ct(folder / "ct", _SEED, phantom=phantom, shell=ct)
    xray = Shell(accession_number="DEMO-XR", study_id="2")
    write_xray(folder / "xray", _SEED, phantom=phantom.upright, shell=xray)
    truth = json.loads(made.truth.read_text(encoding="utf-8"))
    lungs = truth["lung_volume_ml"]
    nodules = [f"{each['diameter_mm']:.0f} mm ({each['side']})" for each in truth["nodules"]]
    return (
        f"The truth: right lung {lungs['right']:,.0f} mL, left lung {lungs['left']:,.0f} mL, and "
        f"nodules of {' and '.join(nodules)} in the CT and the X-ray. What a model says otherwise "
        "is wrong: those that come along are small."
    )


def studies_in(folder: Path) -> tuple[tuple[SentStudy, ...], tuple[Outcome, ...]]:
    """Return the studies under a path, and what there is no readable DICOM."""
    read = read_folder(folder)
    by_study: dict[str, list[Image]] = {}
    for image, _ in read.images.values():
        by_study.setdefault(str(image.attributes["StudyInstanceUID"]), []).append(image)
    paths = {uid: path for uid, (_, path) in read.images.items()}
    titles = _titles(by_study)
    return (
        tuple(
            SentStudy(
                study_instance_uid=uid,
                title=titles[uid],
                series=tuple(
                    SentSeries(
                        series_instance_uid=each.series_instance_uid,
                        title=_series_title(each.images[0]),
                        files={
                            one.sop_instance_uid: paths[one.sop_instance_uid] for one in each.images
                        },
                    )
                    for each in series_of(images)
                ),
            )
            for uid, images in sorted(by_study.items(), key=lambda item: titles[item[0]])
        ),
        read.unreadable,
    )


def _uids(series: Series) -> list[str]:
    return [image.sop_instance_uid for image in series.images]


def _titles(by_study: dict[str, list[Image]]) -> dict[str, str]:
    """Return a name for each study; those that would share one are numbered."""
    titles: dict[str, str] = {}
    for uid, images in by_study.items():
        described = _text(images[0], "StudyDescription") or "/".join(_modalities(images))
        title, number = described, 2
        while title in titles.values():
            title, number = f"{described} ({number})", number + 1
        titles[uid] = title
    return titles


def _modalities(images: Iterable[Image]) -> list[str]:
    return sorted({_text(image, "Modality") for image in images} - {""})


def _series_title(image: Image) -> str:
    number = image.attributes.get("SeriesNumber")
    numbered = f"{number:g}" if isinstance(number, int | float) else ""
    parts = [numbered, _text(image, "Modality"), _text(image, "SeriesDescription")]
    return " ".join(part for part in parts if part) or image.series_instance_uid


def _text(image: Image, keyword: str) -> str:
    value = image.attributes.get(keyword, "")
    return value if isinstance(value, str) else ""
