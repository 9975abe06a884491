"""Moments: integer microseconds UTC inside, DA, TM and DT outside (PS3.5 6.2)."""

from __future__ import annotations

import re
import time
from datetime import UTC, date, datetime, timedelta, timezone
from typing import NewType
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dicomai.errors import ConfigError

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


def is_day(digits: str) -> bool:
    """Tell whether a text is a day as DA has it, 20260131."""
    if re.fullmatch(r"[0-9]{8}", digits) is None:
        return False
    try:
        date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return False
    return True


def days_before(day: date, days: int) -> date:
    """Return the day so many days before another, and no day before the year 1000.

    Who writes a million days means any age; a year of three digits is no DA.
    """
    return date.fromordinal(max(date(1000, 1, 1).toordinal(), day.toordinal() - days))


_OFFSET = re.compile(r"[+-](?:0\d|1[0-4])[0-5]\d")


def utc_offset(declared: str, zone: str, study_date: str, study_time: str) -> str:
    """Return the value of Timezone Offset From UTC (PS3.3 C.12.1.1.8), as `+0100`.

    Parameters
    ----------
    declared
        What the source says; taken where it is an offset.
    zone
        IANA name of the zone of the modalities, for a source that doesn't say.
    study_date, study_time
        DA and TM of the study, which decide on summer time; without a date, the offset is UTC's.

    Raises
    ------
    ConfigError
        The zone is unknown on this machine.
    """
    if _OFFSET.fullmatch(declared.strip()) and declared.strip() != "-0000":
        return declared.strip()
    try:
        at = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError) as trouble:
        raise ConfigError(
            f"service.timezone: this machine knows no time zone {zone!a}. Name one as "
            '"Europe/Berlin".',
            subject="service.timezone",
        ) from trouble
    digits = re.sub(r"\D", "", study_time)[:4].ljust(4, "0")  # seconds may be 60
    try:
        then = datetime.strptime(study_date.strip() + digits, "%Y%m%d%H%M")  # noqa: DTZ007  # the zone comes next
    except ValueError:
        return "+0000"
    return then.replace(tzinfo=at).strftime("%z")[:5]


def da_and_tm(instant: Instant, offset: str) -> tuple[str, str]:
    """Return a moment as DA and TM at an offset from UTC, whole microseconds kept."""
    sign = -1 if offset.startswith("-") else 1
    ahead = sign * timedelta(hours=int(offset[1:3]), minutes=int(offset[3:5]))
    local = as_datetime(instant).astimezone(timezone(ahead))
    return local.strftime("%Y%m%d"), local.strftime("%H%M%S.%f")
