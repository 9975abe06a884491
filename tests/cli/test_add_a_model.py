"""What the page about adding a model says, done as it says."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path

import pydicom
import pytest
import torch

from dicomai.models.runtimes.networks import NETWORKS
from tests.cli.conftest import Dicomai

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "how-to" / "add-a-model.md"


def _block(language: str) -> str:
    """The first block of a language on the page."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_the_example_makes_a_package_that_is_trusted_and_runs(
    dicomai: Dicomai, sample_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "model.toml").write_text(_block("toml"))
    torch.manual_seed(1)
    exec(compile(_block("python"), str(PAGE), "exec"), {})
    assert dicomai("init", ".").code == 0
    shutil.copytree("my-model", "models/my-model")
    answer = dicomai("models", "trust", "my-model")
    assert (answer.code, answer.err) == (0, "")
    images = sample_data / "modalities" / "made-double-oblique"
    answer = dicomai("run", "my-model", images, "--out", "out", "--device", "cpu")
    assert answer.code == 0, answer.err
    report = next(each for each in Path("out").rglob("my-model-sr.dcm"))
    assert pydicom.dcmread(report).Modality == "SR"


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_the_reference_has_each_argument_of_a_network(network: str) -> None:
    page = (DOCS / "reference" / "model-toml.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| `{network}` \| `(\w+)` \| [^|]+ \| `([^`]+)` \|", page, re.MULTILINE)
    signature = inspect.signature(NETWORKS[network]).parameters.values()
    assert rows == [(each.name, json.dumps(each.default)) for each in signature]
