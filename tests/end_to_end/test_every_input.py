"""`dicomai run` on every set of sample data: a result, or a refusal that says what to do.

The model draws the outline of what is brighter than its surroundings and knows nothing. What
happened to each set stands in docs/inputs.md, word for word.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections import Counter
from functools import partial
from pathlib import Path

import pydicom
import pytest
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from dicomai.cli.main import app
from dicomai.models.runtimes import torch_runtime
from dicomai.results.encode import written

PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"
OUTLINE = """
format = 1
name = "outline"
version = "1.0.0"
manufacturer = "dicomai"
licence = "Apache-2.0"
intended_use = "Tests."
not_for = "Not for patients."
sought = "The outline of the body"
[limits]
modality = ["CT", "MR", "PT"]
[[input]]
name = "series"
kind = "volume"
[preprocess]
spacing_mm = [4.0, 4.0, 4.0]
clip_percentiles = [2, 98]
[infer]
network = "outline"
inferer = "whole"
activation = "sigmoid"
[postprocess]
largest = 1
[[output]]
kind = "segment"
label = "Outline"
category = { value = "123037004", scheme = "SCT", meaning = "Body structure" }
type = { value = "38266002", scheme = "SCT", meaning = "Entire body" }
"""

_UID = re.compile(r"\b[0-9](?=[0-9.]{19})[0-9.]*[0-9]\b")


class Outline(nn.Module):
    """The surer of a voxel, the brighter it is."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, …) to logits (N, 1, …)."""
        return (x - 0.3) * 20


@pytest.fixture
def outline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the package."""
    folder = tmp_path / "outline"
    folder.mkdir()
    (folder / "model.toml").write_text(OUTLINE)
    (folder / "CARD.md").write_text("It draws the outline.\n")
    save_file({}, folder / "weights.safetensors")
    load = partial(torch_runtime.load, networks={"outline": Outline})
    monkeypatch.setattr("dicomai.models.runtimes.torch_runtime.load", load)
    return folder


def sets(data: Path) -> dict[str, Path]:
    """Every set of DICOM by its name: a folder, an archive."""
    found = {"ct-chest-lidc": data / "ct-chest-lidc" / "LIDC-IDRI-0001.tar.xz"}
    for parent in ("modalities", "mr-hippocampus/dicom", "ibsi-digital-phantom/dicom"):
        for path in sorted((data / parent).iterdir()):
            if path.is_dir() or path.name.endswith(".tar.xz"):
                found[f"{parent}/{path.name}"] = path
    for parent in ("transfer-syntaxes", "odd", "odd/made"):
        for path in sorted((data / parent).iterdir()):
            if path.is_dir() and path.name != "made":
                found[f"{parent}/{path.name}"] = path
    return found


def told(outcomes: list[dict[str, object]], objects: list[bytes]) -> str:
    """What happened to a set, for its row: each sentence once, with how often."""
    sentences: Counter[str] = Counter()
    for outcome in outcomes:
        sentence = str(outcome["because"])
        if outcome["objects"]:
            sentence = "Segmented."
            warned = [
                line
                for octets in objects
                for line in warnings_of(pydicom.dcmread(io.BytesIO(octets)))
            ]
            sentence = " ".join([sentence, *dict.fromkeys(warned)])
        sentence = _UID.sub("…", sentence)
        sentence = re.sub(r"/\S+/", "", sentence)
        sentences[sentence.replace("|", "/")] += 1
    return "<br>".join(
        sentence if count == 1 else f"{count} times: {sentence}"
        for sentence, count in sorted(sentences.items(), key=lambda item: (-item[1], item[0]))
    )


def warnings_of(report: pydicom.Dataset) -> list[str]:
    """What a report says of gantry tilt and spacing."""
    lines = []
    for item in report.get("ContentSequence") or ():
        text = str(item.get("TextValue", ""))
        lines += [part for part in [text] if "gantry tilt" in part or "unevenly" in part]
        lines += warnings_of(item)
    return lines


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_table_of_inputs_says_what_happens(
    outline: Path, sample_data: Path, tmp_path: Path
) -> None:
    rows = []
    for name, path in sets(sample_data).items():
        folder = path
        if path.is_file():
            folder = tmp_path / path.name
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        out = tmp_path / "out" / name.replace("/", "_")
        answer = CliRunner().invoke(
            app, ["run", str(outline), str(folder), "--out", str(out), "--device", "cpu", "--json"]
        )
        assert answer.exit_code in (0, 1), (name, answer.output)
        assert "Traceback" not in answer.output
        outcomes = json.loads(answer.stdout)
        objects = [each.read_bytes() for each in sorted(out.rglob("*.dcm"))]
        rows.append(f"| `{name}` | {len(outcomes)} | {told(outcomes, objects)} |")
    page = PAGE.read_text() if PAGE.exists() else ""
    written = [line for line in page.splitlines() if line.startswith("| `")]
    (tmp_path / "inputs.md").write_text("\n".join(rows))
    assert rows == written, f"what happens now: {tmp_path / 'inputs.md'}"


@pytest.mark.parametrize(
    ("name", "key", "words", "sources"),
    [
        ("mr-feet-first.tar.xz", 'kind = "volume"\npart = "time 2"', "", 10),
        ("mr-enhanced-siemens-xa10", 'kind = "volume"\npart = "time 3"', "", 1),
        (
            "made-uneven",
            'kind = "volume"\n[limits]\nuneven_spacing_mm = 1.0\nmodality = ["CT"]',
            "unevenly spaced, 2.00 to 3.00 mm apart",
            6,
        ),
    ],
)
def test_a_manifest_opens_what_is_refused_otherwise(
    name: str,
    key: str,
    words: str,
    sources: int,
    outline: Path,
    sample_data: Path,
    tmp_path: Path,
) -> None:
    manifest = OUTLINE.replace('kind = "volume"', key)
    if "[limits]" in key:
        manifest = manifest.replace('[limits]\nmodality = ["CT", "MR", "PT"]\n', "")
    (outline / "model.toml").write_text(manifest)
    folder = sample_data / "modalities" / name
    if folder.is_file():
        with tarfile.open(folder) as archive:
            archive.extractall(tmp_path / "series", filter="data")
        folder = tmp_path / "series"
    out = tmp_path / "out"
    answer = CliRunner().invoke(
        app, ["run", str(outline), str(folder), "--out", str(out), "--device", "cpu", "--json"]
    )
    assert answer.exit_code == 0, answer.output
    found = {each.Modality: each for each in map(pydicom.dcmread, out.rglob("*.dcm"))}
    assert set(found) == {"SEG", "SR"}
    images = {
        image.ReferencedSOPInstanceUID
        for frame in found["SEG"].PerFrameFunctionalGroupsSequence
        for image in frame.DerivationImageSequence[0].SourceImageSequence
    }
    assert 0 < len(images) <= sources
    assert any(words in line for line in [*warnings_of(found["SR"]), ""])


def _ran(outline: Path, folder: Path, out: Path) -> tuple[int, dict[str, object]]:
    command = ["run", str(outline), str(folder), "--out", str(out), "--device", "cpu", "--json"]
    answer = CliRunner().invoke(app, [*command, "--objects", "SEG,SR,NOT-ANALYSED"])
    (outcome,) = json.loads(answer.stdout)
    return answer.exit_code, outcome


def _reports(out: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in out.rglob("*.dcm")]


@pytest.mark.parametrize(
    ("name", "key", "why"),
    [
        ("made-missing-slice", "", "has no slice at 6.0 mm"),
        ("made-double-oblique", 'modality = ["MR"]', "the modality is CT, allowed MR"),
        ("cut short", "", "pixel"),
    ],
    ids=["geometry", "limits", "decoding"],
)
def test_a_series_that_is_not_analysed_gets_a_report_that_says_why(
    name: str, key: str, why: str, outline: Path, sample_data: Path, tmp_path: Path
) -> None:
    folder = sample_data / "modalities" / name
    if name == "cut short":
        folder = tmp_path / "series"
        source = sample_data / "modalities" / "made-double-oblique"
        shutil.copytree(source, folder, copy_function=shutil.copyfile)  # which may be read-only
        path = min(folder.iterdir())
        dataset = pydicom.dcmread(path)
        dataset.PixelData = dataset.PixelData[:100]
        dataset.save_as(path)
    if key:
        manifest = OUTLINE.replace('modality = ["CT", "MR", "PT"]', key)
        (outline / "model.toml").write_text(manifest)
    code, outcome = _ran(outline, folder, tmp_path / "out")
    assert code == 1
    assert why in str(outcome["because"])
    (report,) = _reports(tmp_path / "out")
    assert report.SOPClassUID.name == "Comprehensive 3D SR Storage"
    words = [item.TextValue for item in report.ContentSequence[-1].ContentSequence]
    assert any(f"not analysed: {outcome['because']}" in text for text in words)


def test_objects_that_break_a_rule_are_no_result_and_are_kept_apart(
    outline: Path, sample_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(result: pydicom.Dataset) -> bytes:
        if result.Modality == "SR":
            result.VerificationFlag = "VERIFIED"
        return written(result)

    monkeypatch.setattr("dicomai.service.folder.written", mistaken)
    out = tmp_path / "out"
    code, outcome = _ran(outline, sample_data / "modalities" / "made-double-oblique", out)
    assert code == 1
    assert "breaks the rule of status" in str(outcome["because"])
    assert outcome["objects"] == []
    assert {path.parent.name for path in out.rglob("*.dcm")} == {"refused"}
    assert len(_reports(out)) == 2
