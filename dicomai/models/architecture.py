"""What is known of a network before it is built, so that a manifest is checked without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

DEFAULT_CHANNELS: Final = 1
"""What every network takes and gives where its arguments don't say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What a network takes and gives.

    Attributes
    ----------
    kind
        Of its input.
    taken, given
        Its arguments that say how many channels it takes, and gives.
    """

    kind: Literal["volume", "image"]
    taken: str = "in_channels"
    given: str


ARCHITECTURES: Final[Mapping[str, Architecture]] = MappingProxyType(
    {
        "unet3d": Architecture(kind="volume", given="out_channels"),
        "classifier2d": Architecture(kind="image", given="classes"),
    }
)
"""By the names that a manifest may give; `runtimes.networks` builds them."""
