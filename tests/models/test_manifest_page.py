"""The reference of `model.toml` names every key, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from dicomai.models import input as inputs
from dicomai.models import manifest, output, steps

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "model-toml.md"
TABLES: dict[str, tuple[type[BaseModel], ...]] = {
    "Top": (manifest.Manifest,),
    "[limits]": (inputs.Limits,),
    "[[input]]": (inputs.Input,),
    "[preprocess]": (steps.Preprocess,),
    "[infer]": (steps.Infer,),
    "[postprocess]": (steps.Postprocess,),
    "[[output]]": (output.SegmentOutput, output.DetectionOutput, output.ClassOutput),
}


@pytest.mark.parametrize("table", TABLES)
def test_the_page_names_every_key_and_no_other(table: str) -> None:
    sections = dict(
        re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    )
    told = set(re.findall(r"^\| `(\w+)` \|", sections[table], re.MULTILINE))
    keys = {name for model in TABLES[table] for name in model.model_fields}
    if table == "Top":
        keys -= {"limits", "input", "preprocess", "infer", "postprocess", "output", "measure"}
    assert told == keys
