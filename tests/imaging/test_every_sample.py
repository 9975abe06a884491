"""Every object of the sample folders becomes what it is, or is refused in one sentence."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import Dataset

from dicomai.errors import InputError
from dicomai.imaging.attributes import values_checked_here
from dicomai.imaging.frame import frames_of
from dicomai.imaging.greyscale import check_greyscale
from dicomai.imaging.image import image_of
from dicomai.imaging.intake import Intake
from dicomai.imaging.modality import modality_transform
from dicomai.imaging.pixels import stored_pixels
from dicomai.imaging.series import read_object, scan
from dicomai.imaging.volume import volumes_of

WAYS: dict[str, Callable[[Dataset], object]] = {
    "slices": lambda dataset: slices_of(dataset),
    "grey": image_of,
    "displayed": lambda dataset: image_of(dataset, Intake(displayed=True)),
    "colour": lambda dataset: image_of(dataset, Intake(colour=True)),
}
ANY_SPACING = Intake(uneven_mm=100.0)
MODALITIES = {
    "bad-gantry-tilt.tar.xz": "1 volume",
    "bad-not-a-volume.tar.xz": "refused",
    "bad-orientation-mixed.tar.xz": "refused",
    "bad-slice-count": "1 volume",
    "bad-uneven-spacing.tar.xz": "1 volume",
    "cr": "grey",
    "ct-highdicom": "refused",
    "ct-nonisotropic": "1 volume",
    "ct-philips-tilt.tar.xz": "1 volume",
    "ct-rgb-series": "refused",
    "dx": "grey",
    "enhanced-ct": "refused",
    "made-4d-ct-phase": "2 volumes",
    "made-double-oblique": "1 volume",
    "made-duplicate-position": "refused",
    "made-instance-numbers-reversed": "1 volume",
    "made-missing-slice": "1 volume",
    "made-mixed-frame-of-reference": "refused",
    "made-mixed-spacing": "refused",
    "made-position-jitter": "1 volume",
    "made-prone-feet-first": "1 volume",
    "made-slope-per-slice": "1 volume",
    "made-uneven": "1 volume",
    "mg": "grey",
    "mr-12bit-overlay-bits": "refused",
    "mr-decubitus-HFDL.tar.xz": "1 volume",
    "mr-decubitus-HFDR.tar.xz": "1 volume",
    "mr-decubitus-HFP.tar.xz": "1 volume",
    "mr-decubitus-HFS.tar.xz": "1 volume",
    "mr-enhanced-philips-dti.tar.xz": "4 volumes",
    "mr-enhanced-philips-fieldmap.tar.xz": "2 volumes",
    "mr-enhanced-philips-fmri": "4 volumes",
    "mr-enhanced-siemens-xa10": "4 volumes",
    "mr-feet-first.tar.xz": "5 volumes",
    "mr-ge-4d-dti": "2 volumes",
    "mr-ge-4d-fmri": "2 volumes",
    "mr-ge-oblique": "1 volume",
    "mr-mlut": "grey",
    "mr-philips-4d-dti": "4 volumes",
    "mr-philips-anatomical": "1 volume",
    "mr-siemens-dti-classic.tar.xz": "2 volumes",
    "mr-siemens-mosaic.tar.xz": "refused",
    "mr-sts-002.tar.xz": "1 volume",
    "mr-vlut": "grey",
    "nm": "refused",
    "pet-sts-002.tar.xz": "1 volume",
    "photo": "colour",
    "us": "colour",
    "wsi": "refused",
}
"""With any spacing allowed. Of `us`, the cine loop is refused: it runs in time, not in space."""


def slices_of(dataset: Dataset) -> None:
    """Decode each frame of an object as a slice of a volume."""
    check_greyscale(dataset)
    for frame in frames_of(dataset):
        pixels, transform = stored_pixels(frame.source), modality_transform(frame.header)
        with values_checked_here():
            transform.values(pixels.frame(frame.index))


def refusal(way: Callable[[Dataset], object], dataset: Dataset) -> str:
    """The sentence that refuses it, or ""; anything else but a sentence is a failure."""
    try:
        way(dataset)
    except InputError as error:
        return error.sentence
    return ""


def test_every_object_that_is_odd_is_read_or_refused_in_one_sentence(sample_data: Path) -> None:
    folder = sample_data / "odd"
    entries = json.loads((folder / "manifest.json").read_text())["files"]
    outcomes: Counter[str] = Counter()
    for entry in entries:
        path = folder / entry["path"]
        try:
            dataset = read_object(path)
        except InputError as error:
            outcomes["unreadable"] += 1
            sentences = [error.sentence]
        else:
            said = {name: refusal(way, dataset) for name, way in WAYS.items()}
            sentences = [sentence for sentence in said.values() if sentence]
            outcomes[" ".join(name for name, sentence in said.items() if not sentence)] += 1
        for sentence in sentences:
            assert sentence.endswith("."), entry["path"]
            assert sentence.isprintable(), entry["path"]
            assert "Traceback" not in sentence
            assert len(sentence) < 700, entry["path"]
    assert sum(outcomes.values()) == len(entries) == 256
    # What reads well enough to be a slice, and what is a picture; the rest is refused.
    assert outcomes["slices"] == 131
    assert outcomes["grey displayed"] == 13


def every_series(folder: Path) -> Iterator[tuple[Dataset, ...]]:
    for series in scan(folder, pixels=True).series:
        for dataset in series.datasets:
            if "FrameOfReferenceUID" not in dataset:
                dataset.FrameOfReferenceUID = "1.2.3"  # which anonymising took away
        yield series.datasets


@pytest.mark.parametrize(("name", "outcome"), MODALITIES.items(), ids=MODALITIES)
def test_every_series_becomes_what_it_is(
    name: str, outcome: str, sample_data: Path, tmp_path: Path
) -> None:
    path = sample_data / "modalities" / name
    if path.is_file():
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path, filter="data")
        path = tmp_path
    found = set()
    for datasets in every_series(path):
        try:
            count = len(volumes_of(datasets, ANY_SPACING))
            found.add("1 volume" if count == 1 else f"{count} volumes")
        except InputError:
            found |= {
                way
                for dataset in datasets
                for way in ("grey", "colour")
                if not refusal(WAYS[way], dataset)
            } or {"refused"}
    assert found - {"refused"} == {outcome} - {"refused"}, found
    if outcome == "refused":
        assert found == {"refused"}


def test_no_series_of_the_folder_is_left_out(sample_data: Path) -> None:
    manifest = json.loads((sample_data / "modalities" / "manifest.json").read_text())
    entries = {
        each["path"].strip("/").split("/")[0] for each in manifest["files"] + manifest["series"]
    }
    assert entries == set(MODALITIES)
