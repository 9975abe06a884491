"""What memory a run will take, and what there is for it."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from dicomai.imaging.resample import SLAB_VOXELS, Resampling

_MARGIN: Final = 1.25
"""What allocators, libraries and temporary arrays take beside what is counted."""
_FILLED: Final = 4
"""How often masks fill the source's grid, all together."""
DEVICE_SLAB_VOXELS: Final = 1 << 26
"""Of all channels, that a GPU resamples at a time."""
_WHOLE_PRECISION_BYTES: Final = 1 << 30
"""Of the sums of all channels over the slices of a window."""
_GROUPS: Final = Path("/sys/fs/cgroup")
_OWN_GROUP: Final = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a run takes at its peak, in bytes.

    Attributes
    ----------
    host
        On the host, whatever the device: input, blended probabilities, slabs, masks.
    window
        On the device, for each window that the network sees at a time; 0 where nobody knows.
    gathered
        On a device that gathers what windows say: input, blended probabilities, slabs.
    """

    host: int
    window: int = 0
    gathered: int = 0

    def with_window(self, pass_bytes: int) -> Need:
        """Return it with what a forward pass over one window takes."""
        return replace(self, window=int(_MARGIN * pass_bytes))

    def on_host(self, windows: int, *, device_is_host: bool) -> int:
        """Return what is needed on the host for so many windows at a time."""
        return self.host + (windows * self.window if device_is_host else 0)

    def on_device(self, windows: int, *, gathers: bool) -> int:
        """Return what is needed on a device with memory of its own."""
        return windows * self.window + (self.gathered if gathers else 0)


def need(
    way: Resampling,
    *,
    inputs: int,
    channels: int,
    depth: int,
    masks: int,
) -> Need:
    """Return what a run over a volume takes, from its voxel count and its model.

    Parameters
    ----------
    way
        Between the grids of source and model.
    inputs, channels
        Of the network's input and output.
    depth
        Slices of a window; of the whole grid where there are no windows.
    masks
        How many outputs there are; a mask takes what it holds, so many fill the grid a few times.
    """
    source, model = math.prod(way.source.shape_kji), math.prod(way.model.shape_kji)
    plane = math.prod(way.model.shape_kji[1:])
    rows = 4 * way.source.shape_kji[0] * plane
    if way.upright is not None and way.upright.tilted:  # slices lie on its rows and columns first
        rows += 4 * way.source.shape_kji[0] * math.prod(way.upright.grid.shape_kji[1:])
    preparing = rows + (1 + inputs) * 4 * model
    blended = _blended_bytes(channels, min(depth, way.model.shape_kji[0]) * plane)
    slabs = 3 * 4 * max(SLAB_VOXELS, channels * math.prod(way.source.shape_kji[1:]))
    held = inputs * 4 * model + 2 * blended
    if way.axes[0] != 0:  # all slabs are put together before they go back
        held += 2 * channels * sum_bytes(channels, model) * model
    working = 4 * 4 * max(DEVICE_SLAB_VOXELS, channels * math.prod(way.source.shape_kji[1:]))
    gathered = held + max(2 * source, working)
    running = held + slabs + min(masks, _FILLED) * source
    return Need(host=int(_MARGIN * max(preparing, running)), gathered=int(_MARGIN * gathered))


def sum_bytes(channels: int, voxels: int) -> int:
    """Return what each sum of probabilities takes that is blended, for so many of each channel.

    That is float16 where float32 would take more than a gibibyte: sums are of a few probabilities.
    """
    return 4 if 4 * channels * voxels <= _WHOLE_PRECISION_BYTES else 2


def _blended_bytes(channels: int, voxels: int) -> int:
    """Return what sums over so many voxels, the slices of a window, take; weights too."""
    return voxels * (channels * sum_bytes(channels, voxels) + 4)


def host_free_bytes() -> int:
    """Return what this process may still take: of the host, of its groups, of its own limit."""
    free = [_available_bytes(), *_left_of_groups()]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        free.append(limit - pages * resource.getpagesize())
    return max(0, min(free))


def _left_of_groups() -> Iterator[int]:
    """Give what is left of the limits of our control group and those around it (cgroup v2)."""
    lines = _OWN_GROUP.read_text(encoding="utf-8").splitlines() if _OWN_GROUP.exists() else []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    group = _GROUPS / own.lstrip("/")
    for each in (group, *group.parents):
        try:
            most = (each / "memory.max").read_text(encoding="ascii").strip()
            if most != "max":
                used = int((each / "memory.current").read_text(encoding="ascii"))
                yield int(most) - used + _cached_bytes(each / "memory.stat")
        except OSError:  # the root has no limit, and a container does not see those around it
            pass
        if each == _GROUPS:
            return


def _cached_bytes(stat: Path) -> int:
    """Return what the kernel keeps of files, and gives up for whoever wants memory."""
    lines = (line.split() for line in stat.read_text(encoding="ascii").splitlines())
    return sum(int(size) for name, size in lines if name in ("active_file", "inactive_file"))


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise OSError("/proc/meminfo does not say MemAvailable")
