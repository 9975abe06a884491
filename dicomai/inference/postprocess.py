"""From probabilities on the model's grid to masks on the source's, as the manifest says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dicomai.findings import Mask
from dicomai.imaging.geometry import Grid
from dicomai.imaging.resample import Resampling
from dicomai.inference.measure import Cut, bounds, labelled
from dicomai.models.manifest import Postprocess


@dataclass(frozen=True, slots=True)
class Choice:
    """Which voxels a mask takes: those of a channel, from a probability on."""

    channel: int
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Region:
    """A mask with the probabilities inside.

    Attributes
    ----------
    cut
        The part of the source grid that holds the mask.
    mask : (k, j, i) bool
        Of that part.
    values : (n,) float32
        Probability of each voxel of the mask, in the order of its indices; a hole that was
        filled has that of the threshold.
    """

    cut: Cut
    mask: Mask
    values: npt.NDArray[np.float32]

    def whole(self, grid: Grid) -> Mask:
        """Return the mask on the whole grid, (K, J, I) bool."""
        out = np.zeros(grid.shape_kji, dtype=np.bool_)
        out[self.cut] = self.mask
        return out

    def only(self, kept: Mask) -> Region | None:
        """Return the part of it that `kept`, of the same shape, holds; None where that is empty."""
        mask = self.mask & kept
        tight = bounds(mask)
        if tight is None:
            return None
        return Region(
            cut=_within(self.cut, tight), mask=mask[tight], values=self.values[kept[self.mask]]
        )


def _within(outer: Cut, inner: Cut) -> Cut:
    k, j, i = (
        slice(out.start + part.start, out.start + part.stop)
        for out, part in zip(outer, inner, strict=True)
    )
    return k, j, i


def regions(
    probabilities: npt.NDArray[np.float32],
    way: Resampling,
    choices: Iterable[Choice],
    *,
    argmax: bool,
) -> dict[Choice, Region | None]:
    """Return what each choice holds on the source's grid; None where it holds nothing.

    Probabilities are resampled before they are compared, in slabs, so that neither the
    probabilities of all voxels nor more than one slab of channels stand in memory.

    Parameters
    ----------
    probabilities : (C, K', J', I') float32
        On the model's grid.
    way
        Between the two grids.
    argmax
        Each voxel goes to its most probable channel, whatever the thresholds.
    """
    wanted = tuple(dict.fromkeys(choices))
    channels = (
        tuple(range(len(probabilities)))
        if argmax
        else tuple(sorted({each.channel for each in wanted}))
    )
    lowest = {
        channel: min((c.threshold for c in wanted if c.channel == channel), default=1.0)
        for channel in channels
    }

    def may_hold(part: npt.NDArray[np.float32]) -> bool:
        if argmax:
            return True
        return any(float(part[at].max()) >= lowest[channel] for at, channel in enumerate(channels))

    masks = {choice: np.zeros(way.source.shape_kji, dtype=np.bool_) for choice in wanted}
    values: dict[Choice, list[npt.NDArray[np.float32]]] = {choice: [] for choice in wanted}
    for slab, slab_values in way.to_source(probabilities[list(channels)], may_hold):
        first = slab_values.argmax(axis=0) if argmax else None
        for choice in wanted:
            at = channels.index(choice.channel)
            chosen = slab_values[at] >= choice.threshold if first is None else first == at
            masks[choice][slab] = chosen
            values[choice].append(slab_values[at][chosen])
    out: dict[Choice, Region | None] = {}
    for choice in wanted:
        cut = bounds(masks[choice])
        out[choice] = (
            None
            if cut is None
            else Region(cut=cut, mask=masks[choice][cut], values=np.concatenate(values[choice]))
        )
    return out


def cleaned(region: Region, rules: Postprocess, grid: Grid, threshold: float) -> Region | None:
    """Return a region with its holes filled and only the components that the manifest wants."""
    if rules.fill_holes:
        region = _filled(region, threshold)
    if not rules.min_volume_ml and rules.largest is None:
        return region
    labels, count = labelled(region.mask)
    thickness = np.repeat(
        grid.thickness_k[region.cut[0]], np.count_nonzero(region.mask, axis=(1, 2))
    )
    sizes = np.bincount(labels[region.mask], weights=thickness, minlength=count + 1)
    keep = sizes * grid.voxel_mm3 / 1000 >= max(rules.min_volume_ml, 1e-12)
    if rules.largest is not None:
        keep[np.argsort(-sizes, kind="stable")[rules.largest :]] = False
    return region.only(keep[labels])


def _filled(region: Region, threshold: float) -> Region:
    mask = np.stack([ndimage.binary_fill_holes(each) for each in region.mask])
    values = np.full(int(np.count_nonzero(mask)), threshold, dtype=np.float32)
    values[region.mask[mask]] = region.values
    return Region(cut=region.cut, mask=mask, values=values)


def components(region: Region) -> list[Region]:
    """Return the components of a region, each with its own probabilities."""
    labels, count = labelled(region.mask)
    inside = labels[region.mask]
    order = np.argsort(inside, kind="stable")
    ends = np.cumsum(np.bincount(inside, minlength=count + 1))
    out = []
    for number, cut in enumerate(ndimage.find_objects(labels), start=1):
        k, j, i = cut
        members = order[ends[number - 1] : ends[number]]
        out.append(
            Region(
                cut=_within(region.cut, (k, j, i)),
                mask=labels[cut] == number,
                values=region.values[members],
            )
        )
    return out
