"""A time in a result says how far from UTC it is."""

from __future__ import annotations

import pytest

from dicomai.dicom.dates import Instant, da_and_tm, utc_offset
from dicomai.errors import ConfigError


@pytest.mark.parametrize(
    ("declared", "date", "time", "offset"),
    [
        ("", "20260720", "101500", "+0200"),
        ("", "20260120", "101500", "+0100"),
        ("", "20260329", "0159", "+0100"),
        ("", "20260329", "030000.5", "+0200"),
        ("", "20260720", "", "+0200"),
        ("", "", "101500", "+0000"),
        ("-0330", "20260720", "101500", "-0330"),
        ("+0530 ", "20260720", "101500", "+0530"),
        ("Berlin", "20260720", "101500", "+0200"),
    ],
)
def test_the_sources_offset_counts_else_the_zones_on_that_day(
    declared: str, date: str, time: str, offset: str
) -> None:
    assert utc_offset(declared, "Europe/Berlin", date, time) == offset


def test_an_unknown_zone_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"service\.timezone.*Europa/Berlin"):
        utc_offset("", "Europa/Berlin", "20260720", "101500")


def test_date_and_time_stand_at_the_offset() -> None:
    instant = Instant(1_784_588_400_000_001)  # 2026-07-20T23:00:00.000001Z
    assert da_and_tm(instant, "+0200") == ("20260721", "010000.000001")
    assert da_and_tm(instant, "-0330") == ("20260720", "193000.000001")
