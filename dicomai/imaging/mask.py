"""Masks of which only what is set takes memory."""

from __future__ import annotations

import errno
import math
import mmap
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Mask: TypeAlias = npt.NDArray[np.bool_]
Cut: TypeAlias = tuple[slice, slice, slice]
"""The part of a grid that holds a mask, along k, j, i."""

_SMALL: Final = 1 << 20


def blank_mask(shape_kji: tuple[int, int, int]) -> Mask:
    """Return a mask without a voxel, (K, J, I) bool.

    Where nothing is set no memory is taken, page by page: a large package has a hundred masks on
    the grid of its source, and each holds a small part of it.

    Raises
    ------
    MemoryError
        The host has none.
    """
    size = math.prod(shape_kji)
    if size < _SMALL:
        return np.zeros(shape_kji, dtype=np.bool_)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(f"a mask of {size:,} bytes") from None
        raise
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # 2 MiB would be eight slices
    return np.frombuffer(memory, dtype=np.bool_).reshape(shape_kji)


def bounds(mask: Mask) -> Cut | None:
    """Return the smallest part of a grid that holds a mask, or None where it is empty."""
    k = np.flatnonzero(np.any(mask, axis=(1, 2)))
    if not k.size:
        return None
    within = np.any(mask[k[0] : k[-1] + 1], axis=0)
    j, i = np.flatnonzero(np.any(within, axis=1)), np.flatnonzero(np.any(within, axis=0))
    return (
        slice(int(k[0]), int(k[-1]) + 1),
        slice(int(j[0]), int(j[-1]) + 1),
        slice(int(i[0]), int(i[-1]) + 1),
    )


def per_slice(mask: Mask) -> npt.NDArray[np.int64]:
    """Return how many voxels of a mask lie on each slice, (K,)."""
    # Several times as fast as counting along axes, which makes a number of each voxel first.
    return np.array([np.count_nonzero(each) for each in mask], dtype=np.int64)
