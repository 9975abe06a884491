"""The reference of `model.toml` names every key, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from dicomai.imaging.facts import Facts
from dicomai.imaging.geometry import Grid, Plane
from dicomai.imaging.image import SourceImagePixels
from dicomai.imaging.resample import resampling
from dicomai.imaging.volume import SourceVolume
from dicomai.inference.preprocess import prepare_image, prepare_volume
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


def test_the_page_tells_in_which_order_an_input_is_prepared() -> None:
    """A model that was trained in another order is shown what it does not know."""
    page = " ".join(PAGE.read_text().split())
    bright = np.zeros((2, 2, 2), dtype=np.int16)
    bright[0, 0, 0] = 800
    preprocess = steps.Preprocess(spacing_mm=(2, 2, 2), shape_ji=(1, 1), clip=(0, 80))

    assert "Of a volume in this order: turn, resample, clip, scale." in page
    grid = Grid(shape_kji=(2, 2, 2), index_to_lps=np.eye(4), frame_of_reference_uid="1.2")
    volume = SourceVolume(
        grid=grid, voxels=bright, facts=Facts(modality="CT"), series_instance_uid="1.2.3"
    )
    infer = steps.Infer(network="unet3d", inferer="whole", activation="sigmoid", arguments={})
    way = resampling(grid, "HPL", preprocess.spacing_mm)
    assert way.model.shape_kji == (1, 1, 1)
    inputs = prepare_volume(volume, way, preprocess, infer, None).inputs
    assert inputs.item() == 1  # 800 / 8 is above 80

    assert "Of an image: clip, scale, resample, pad" in page
    image = SourceImagePixels(
        plane=Plane(shape_ji=(2, 2), spacing_ji_mm=None, sop_instance_uid="1.2"),
        pixels=bright[0].astype(np.float32),
        facts=Facts(modality="DX"),
        series_instance_uid="1.2.3",
    )
    assert prepare_image(image, preprocess).item() == 0.25


def test_the_page_tells_where_the_voxels_of_a_model_lie() -> None:
    """A model that was trained on a grid from the first voxel on sees all half a voxel off."""
    page = " ".join(PAGE.read_text().split())
    assert "Both grids have the same centre" in page
    assert "as many voxels as cover the series, rounded up" in page
    grid = Grid(shape_kji=(5, 1, 1), index_to_lps=np.eye(4), frame_of_reference_uid="1.2")
    way = resampling(grid, "LPH", (2, 1, 1))
    assert way.model.shape_kji == (3, 1, 1)
    assert np.allclose(way.model.lps_mm([1, 0, 0]), grid.lps_mm([2, 0, 0]))

    assert "of a voxel that reaches beyond it counts what lies within" in page
    values = np.array([8, 0, 8, 0, 8], dtype=np.float32).reshape(5, 1, 1)
    # In the middle the triangle about 8 is whole, and of both about 0 there is half; at the ends
    # the one about 8 counts twice as much as what there is of the one about 0.
    assert np.allclose(way.to_model(values).ravel(), [16 / 3, 4, 16 / 3])
