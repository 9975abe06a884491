"""Moments: integer microseconds UTC inside, DA, TM and DT outside (PS3.5 6.2)."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import NewType

Instant = NewType("Instant", int)
"""Microseconds since 1970-01-01T00:00:00Z."""

Microseconds = NewType("Microseconds", int)
"""A span of time."""


def now() -> Instant:
    """Return the present, by this host's clock."""
    return Instant(time.time_ns() // 1000)


def seconds(value: float) -> Microseconds:
    """Return a span given in seconds."""
    return Microseconds(round(value * 1_000_000))


def as_datetime(instant: Instant) -> datetime:
    """Return a moment as an aware datetime in UTC."""
    return datetime.fromtimestamp(instant / 1_000_000, UTC)
