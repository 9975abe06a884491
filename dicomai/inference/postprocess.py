"""From probabilities on the model's grid to masks on the source's, as the manifest says."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dicomai.findings import Mask
from dicomai.imaging.back import Back, streamed
from dicomai.imaging.geometry import Grid
from dicomai.imaging.mask import Cut, blank_mask, bounds
from dicomai.imaging.resample import Resampling
from dicomai.inference.measure import labelled
from dicomai.models.steps import Postprocess


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
    values : (n,) float32 or None
        Probability of each voxel of the mask, in the order of its indices; a hole that was
        filled has that of the threshold. None where nobody asks for them.
    everywhere : (K, J, I) bool or None
        The mask on the whole grid, where it stands there already.
    """

    cut: Cut
    mask: Mask
    values: npt.NDArray[np.float32] | None
    everywhere: Mask | None = None

    def whole(self, grid: Grid) -> Mask:
        """Return the mask on the whole grid, (K, J, I) bool."""
        if self.everywhere is not None:
            return self.everywhere
        out = blank_mask(grid.shape_kji)
        out[self.cut] = self.mask
        return out

    def only(self, kept: Mask) -> Region | None:
        """Return the part of it that `kept`, of the same shape, holds; None where that is empty."""
        mask = self.mask & kept
        tight = bounds(mask)
        if tight is None:
            return None
        values = None if self.values is None else self.values[kept[self.mask]]
        return Region(cut=_within(self.cut, tight), mask=mask[tight], values=values)


def _within(outer: Cut, inner: Cut) -> Cut:
    k, j, i = (
        slice(out.start + part.start, out.start + part.stop)
        for out, part in zip(outer, inner, strict=True)
    )
    return k, j, i


def regions(
    probabilities: npt.NDArray[np.floating] | Iterable[npt.NDArray[np.floating]],
    way: Resampling,
    choices: Iterable[Choice],
    *,
    argmax: bool,
    scored: Container[Choice] | None = None,
) -> dict[Choice, Region | None]:
    """Return what each choice holds on the source's grid; None where it holds nothing.

    Probabilities are resampled before they are compared, slab by slab, and of a slab only the
    masks are kept, each as large as what it holds.

    Parameters
    ----------
    probabilities : (C, K', J', I')
        On the model's grid; or slabs of it along k, as `back.streamed` takes them.
    way
        Between the two grids.
    argmax
        Each voxel goes to its most probable channel, whatever the thresholds.
    scored
        The choices of which probabilities are kept too; None: all.
    """
    found = growing(way.source.shape_kji, choices, scored)
    parts = streamed(way, probabilities)
    if argmax:
        _most_probable(parts, way, found)
    else:
        _probable_enough(parts, way, found)
    return {choice: mask.region() for choice, mask in found.items()}


def growing(
    shape_kji: tuple[int, int, int], choices: Iterable[Choice], scored: Container[Choice] | None
) -> dict[Choice, Growing]:
    """Return an empty mask for each choice; probabilities are for those that are `scored`."""
    return {
        choice: Growing(shape_kji, scored=scored is None or choice in scored)
        for choice in dict.fromkeys(choices)
    }


def _probable_enough(
    parts: Iterable[npt.NDArray[np.floating]], way: Resampling, found: dict[Choice, Growing]
) -> None:
    backs = {channel: Back(way) for channel in sorted({each.channel for each in found})}
    for part in parts:
        for channel, back in backs.items():
            wanted = [choice for choice in found if choice.channel == channel]
            least = min(choice.threshold for choice in wanted)
            # Of its own only those parts of a slab that reach so high.
            for where, (values,), _ in back.slabs(part[channel : channel + 1], least=least):
                for choice in wanted:
                    found[choice].add(where, values >= choice.threshold, values)


def _most_probable(
    parts: Iterable[npt.NDArray[np.floating]], way: Resampling, found: dict[Choice, Growing]
) -> None:
    back = Back(way)
    for part in parts:
        for where, values, channels in back.slabs(part, chosen=_contenders):
            first = values.argmax(axis=0)
            there = np.bincount(first.ravel(), minlength=len(values)) > 0
            at = {int(channel): index for index, channel in enumerate(channels) if there[index]}
            for choice, mask in found.items():
                index = at.get(choice.channel)
                if index is not None:
                    inside = first == index
                    if index == 0:  # where nothing was shown to the network, all are 0
                        inside &= values[0] > 0
                    mask.add(where, inside, values[index])


def _contenders(values: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Return the channels of (C, …) that can be the most probable of a voxel between these.

    The sum over all channels is nowhere less than here, so the most probable one has its share.
    """
    share = float(values.sum(axis=0).min()) / len(values)
    most = values.reshape(len(values), -1).max(axis=1)
    found = np.flatnonzero(most >= share * (1 - 1e-5))
    return found if found.size else np.arange(1)


class Growing:
    """A mask that slabs fill, each its own slices, with the probabilities inside."""

    def __init__(self, shape_kji: tuple[int, int, int], *, scored: bool) -> None:
        self._mask = blank_mask(shape_kji)
        self._cut: Cut | None = None
        self._values: list[tuple[int, npt.NDArray[np.float32]]] = []
        self.scored = scored

    def add(self, where: Cut, mask: Mask, values: npt.NDArray[np.float32]) -> None:
        """Take what a part of the grid holds of the mask, and its probabilities; copies both."""
        self.take(where, mask, values[mask] if self.scored else None)

    def take(self, where: Cut, mask: Mask, inside: npt.NDArray[np.float32] | None) -> None:
        """Do the same, given the probabilities inside of the mask where it is `scored`."""
        cut = bounds(mask)
        if cut is None:
            return
        here = _within(where, cut)
        self._mask[here] = mask[cut]
        self._cut = here if self._cut is None else _around(self._cut, here)
        if inside is not None:
            self._values.append((here[0].start, inside))

    def region(self) -> Region | None:
        """Return the mask with its bounds; None where it is empty."""
        if self._cut is None:
            return None
        values = None
        if self.scored:
            self._values.sort(key=lambda each: each[0])
            values = np.concatenate([each for _, each in self._values])
            self._values.clear()
        return Region(
            cut=self._cut, mask=self._mask[self._cut], values=values, everywhere=self._mask
        )


def _around(one: Cut, other: Cut) -> Cut:
    """Return the smallest part of a grid that holds two."""
    k, j, i = (
        slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return k, j, i


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
    values = None
    if region.values is not None:
        values = np.full(int(np.count_nonzero(mask)), threshold, dtype=np.float32)
        values[region.mask[mask]] = region.values
    return Region(cut=region.cut, mask=mask, values=values)


def components(region: Region) -> list[Region]:
    """Return the components of a region, each with its own probabilities."""
    labels, count = labelled(region.mask)
    assert region.values is not None
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
