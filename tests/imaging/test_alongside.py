"""A further volume lies on the grid of the first where the anatomy lies, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dicomai.errors import InputError
from dicomai.imaging.alongside import laid_onto
from dicomai.imaging.geometry import Grid
from dicomai.imaging.volume import SourceVolume, volume_of

MakeSeries = Callable[..., list[Any]]


def plane(lps: Any) -> Any:
    """Values that linear interpolation gives back exactly."""
    return 0.3 * lps[..., 0] - 0.2 * lps[..., 1] + 0.4 * lps[..., 2]


def places(grid: Grid) -> Any:
    return grid.lps_mm(np.moveaxis(np.indices(grid.shape_kji), 0, -1))


@pytest.fixture
def pair(make_series: MakeSeries) -> tuple[SourceVolume, SourceVolume]:
    """A volume, and a larger one around it: turned, of another spacing, in the same frame."""
    first = volume_of(make_series(plane))
    other = volume_of(
        make_series(
            plane,
            row=(0, 1, 0),
            column=(0, 0, -1),
            first=(20.0, -60.0, 150.0),
            spacing_kji=(2.0, 1.7, 1.3),
            shape_kji=(45, 50, 60),
        )
    )
    grid = replace(other.grid, frame_of_reference_uid=first.grid.frame_of_reference_uid)
    return first, replace(other, grid=grid)


def test_each_voxel_gets_what_the_other_has_at_its_place(
    pair: tuple[SourceVolume, SourceVolume],
) -> None:
    first, other = pair
    laid = laid_onto(first.grid, other, "patient")
    assert laid.shape == first.grid.shape_kji
    assert np.abs(laid - plane(places(first.grid))).max() < 0.02


def test_beyond_the_other_is_its_lowest_value(pair: tuple[SourceVolume, SourceVolume]) -> None:
    first, other = pair
    laid = laid_onto(other.grid, first, "patient")
    inside = np.abs(laid - plane(places(other.grid))) < 0.02
    assert 0 < inside.sum() < inside.size / 10
    assert np.allclose(laid[0], first.voxels.min())


def test_centres_lie_on_each_other(pair: tuple[SourceVolume, SourceVolume]) -> None:
    first, other = pair
    there = replace(other, grid=replace(other.grid, frame_of_reference_uid="1.2.3"))
    laid = laid_onto(first.grid, there, "centre")
    middles = [places(each.grid).reshape(-1, 3).mean(axis=0) for each in (other, first)]
    expected = plane(places(first.grid) + (middles[0] - middles[1]))
    assert np.abs(laid - expected).max() < 0.02


def test_another_frame_of_reference_is_refused(pair: tuple[SourceVolume, SourceVolume]) -> None:
    first, other = pair
    for uid in ("1.2.3", ""):
        lost = replace(other, grid=replace(other.grid, frame_of_reference_uid=uid))
        with pytest.raises(InputError, match="another frame of reference"):
            laid_onto(first.grid, lost, "patient")
