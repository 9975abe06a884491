"""The edge of a flat mask as closed lines along the sides of its pixels.

Nothing is smoothed: who fills the lines again gets the very pixels that were set.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Corners: TypeAlias = npt.NDArray[np.int64]
"""(N, 2): row, column of corners of pixels, 0 to rows and 0 to columns; the first is not repeated.
The corner (0, 0) is the outer corner of the first pixel, half a pixel from its centre."""

# Right, down, left, up; a line runs with the mask on its right hand.
_STEPS: Final = ((0, 1), (1, 0), (0, -1), (-1, 0))


def outlines(mask: npt.NDArray[np.bool_]) -> list[list[Corners]]:
    """Return the closed lines around each part of a mask: its outer edge, then those of its holes.

    Parameters
    ----------
    mask
        (J, I) bool. Pixels that meet at a corner only are two parts.
    """
    parts, count = ndimage.label(mask)
    found: list[list[Corners]] = [[] for _ in range(count)]
    leaving = _sides(mask)
    for line, part in _lines(leaving, parts):
        # The outer edge runs clockwise on the screen, that of a hole the other way.
        if _area(line) > 0:
            found[part - 1].insert(0, line)
        else:
            found[part - 1].append(line)
    return found


def _sides(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which sides leave each corner in each direction, (4, J + 1, I + 1) bool."""
    rows, columns = mask.shape
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    out = np.zeros((4, rows + 1, columns + 1), dtype=bool)
    out[0, :-1, :-1] = inside & ~padded[:-2, 1:-1]  # upper sides
    out[1, :-1, 1:] = inside & ~padded[1:-1, 2:]  # right ones
    out[2, 1:, 1:] = inside & ~padded[2:, 1:-1]  # lower ones
    out[3, 1:, :-1] = inside & ~padded[1:-1, :-2]  # left ones
    return out


def _lines(
    leaving: npt.NDArray[np.bool_], parts: npt.NDArray[np.signedinteger]
) -> list[tuple[Corners, int]]:
    left: list[set[tuple[int, int]]] = [
        set(zip(*(each.tolist() for each in np.nonzero(side)), strict=True)) for side in leaving
    ]
    lines = []
    while left[0]:  # every closed line has a side that runs to the right
        row, column = start = next(iter(left[0]))
        part = int(parts[row, column])
        corners = []
        at, heading, closed = start, 0, False
        while not closed:
            left[heading].discard(at)
            at = (at[0] + _STEPS[heading][0], at[1] + _STEPS[heading][1])
            # Right first: pixels that meet at a corner only are kept apart.
            ahead = next(
                each
                for each in ((heading + turn) % 4 for turn in (1, 0, 3))
                if at in left[each] or (at, each) == (start, 0)
            )
            if ahead != heading:
                corners.append(at)
            heading, closed = ahead, (at, ahead) == (start, 0)
        lines.append((np.array(corners, dtype=np.int64), part))
    return lines


def _area(line: Corners) -> int:
    """Return twice the area inside, positive where the line runs clockwise on the screen."""
    rows, columns = line[:, 0], line[:, 1]
    return int(np.sum(columns * np.roll(rows, -1) - np.roll(columns, -1) * rows))
