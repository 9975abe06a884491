"""How settings and the command line name the device that a network runs on."""

from __future__ import annotations

from typing import Final

DEVICE_PATTERN: Final = r"^(auto|cpu|cuda(:[0-9]+)?)$"
