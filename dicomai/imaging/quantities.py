"""Standardised uptake values of PET by body weight (PS3.3 C.8.9.1; QIBA's FDG-PET profile)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from pydicom import Dataset

from dicomai.errors import InputError
from dicomai.imaging.attributes import name_of, numbers, text

_GRAMS: Final = 1000.0
_LONGEST: Final = timedelta(days=2)
"""Between injection and scan; what is longer is a wrong date."""
_HALF_LIVES: Final = 10.0
"""The same: a thousandth of the activity is left, of which no scanner makes an image."""
_KILOGRAMS: Final = (0.2, 500.0)
_BECQUERELS: Final = (1e5, 1e12)
_HALF_LIFE_S: Final = (30.0, 1e7)
"""What is beyond these is in another unit."""
_SAME: Final = ("PatientWeight", "CorrectedImage", "DecayCorrection")
_DATE: Final = re.compile("[1-9][0-9]{7}")
_TIME: Final = re.compile(r"([0-9]{4})(?:([0-9]{2})(?:\.([0-9]{1,6}))?)?")
"""Seconds and their fraction may be left out (PS3.5 6.2); minutes too, but an hour is too long."""
_OFFSET: Final = re.compile("([+-])([0-9]{2})([0-5][0-9])")
_ROUNDED: Final = timedelta(minutes=1)
"""So far two statements of one time may differ."""


def suv_body_weight_factor(headers: Sequence[Dataset]) -> float:
    """Return what turns the values of a PET series into SUV by body weight, g/mL.

    Values in Bq/mL are divided by the injected activity, decayed to the time that the values are
    corrected to, and multiplied by the patient's weight. Values in g/mL are SUV already.

    Raises
    ------
    InputError
        The series is no PET, not corrected for decay, or lacks weight, activity or times.
    """
    first = headers[0]
    if text(first, "Modality") != "PT":
        raise _refuse(first, f"is {text(first, 'Modality') or 'of no modality'} and no PET")
    units = {text(header, "Units").upper() for header in headers}
    if units == {"GML"}:
        kind = text(first, "SUVType").upper()
        if kind not in {"", "BW"}:
            raise _refuse(first, f"holds SUV of the type {kind}, not by body weight")
        return 1.0
    if units != {"BQML"}:
        raise _refuse(first, f"is in units of {', '.join(sorted(units)) or 'nothing'}, not Bq/mL")
    corrections = text(first, "CorrectedImage").upper().split("\\")
    if not {"ATTN", "DECY"} <= set(corrections):
        raise _refuse(first, "is not corrected for attenuation and decay")
    for keyword in _SAME:
        if len({text(header, keyword) for header in headers}) > 1:
            raise _refuse(first, f"has slices of different {keyword}")
    if len({_dose(header) for header in headers}) > 1:
        raise _refuse(first, "has slices of different RadionuclideTotalDose")
    (weight_kg,) = numbers(first, "PatientWeight", 1)
    items = first.get("RadiopharmaceuticalInformationSequence")
    if not items:
        raise _refuse(first, "says nothing of the radiopharmaceutical")
    if len(items) > 1:
        raise _refuse(first, f"was made with {len(items)} radiopharmaceuticals")
    (activity_bq,) = numbers(items[0], "RadionuclideTotalDose", 1)
    if not _within(weight_kg, _KILOGRAMS) or not _within(activity_bq, _BECQUERELS):
        raise _refuse(
            first, f"has a weight of {weight_kg:g} kg and an activity of {activity_bq:g} Bq"
        )
    return weight_kg * _GRAMS / (activity_bq * _left(headers, items[0]))


def _left(headers: Sequence[Dataset], item: Dataset) -> float:
    """Return the fraction of the injected activity that is left when the values count."""
    first = headers[0]
    corrected = text(first, "DecayCorrection").upper()
    if corrected == "ADMIN":
        return 1.0
    if corrected != "START":
        raise _refuse(first, f"has the decay correction {corrected or 'not stated'}")
    (half_life_s,) = numbers(item, "RadionuclideHalfLife", 1)
    if not _within(half_life_s, _HALF_LIFE_S):
        raise _refuse(first, f"has a half-life of {half_life_s:g} s")
    scan = _time(first, "SeriesDate", "SeriesTime")
    acquired = min(_time(header, "AcquisitionDate", "AcquisitionTime") for header in headers)
    if scan > acquired:
        # Some modalities give a processed series the time of the processing.
        raise _refuse(first, "says that its series began after its first slice was acquired")
    injected = _injected(first, item, scan)
    longest = min(_LONGEST, timedelta(seconds=_HALF_LIVES * half_life_s))
    if not timedelta(0) <= scan - injected <= longest:
        raise _refuse(first, f"was injected at {injected} and scanned at {scan}")
    return float(2 ** (-(scan - injected).total_seconds() / half_life_s))


def _dose(header: Dataset) -> str:
    items = header.get("RadiopharmaceuticalInformationSequence")
    return text(items[0], "RadionuclideTotalDose") if items else ""


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


def _injected(header: Dataset, item: Dataset, scan: datetime) -> datetime:
    """Return when it was injected, by the clock of the header's other times.

    A time without a date is the last such before the scan.
    """
    stamp = text(item, "RadiopharmaceuticalStartDateTime")
    time = text(item, "RadiopharmaceuticalStartTime")
    if not stamp:
        found = _parsed(header, f"{scan:%Y%m%d}", time)
        return found if found <= scan else found - timedelta(days=1)
    stamp, offset = (stamp[:-5], stamp[-5:]) if stamp[-5:-4] in ("+", "-") else (stamp, "")
    found = _parsed(header, stamp[:8], stamp[8:])
    if not offset:
        return found
    clock = text(header, "TimezoneOffsetFromUTC")
    if clock:
        return found - _offset(header, offset) + _offset(header, clock)
    # The time alone is by the header's clock, so this tells whether the stamp is too.
    if time and abs(found - _parsed(header, stamp[:8], time)) < _ROUNDED:
        return found
    raise _refuse(header, f"gives only its injection with an offset from UTC ({offset})")


def _offset(header: Dataset, said: str) -> timedelta:
    """Return what has to be added to UTC, such as +0100."""
    found = _OFFSET.fullmatch(said)
    if found is None:
        raise _refuse(header, f"has the offset {said!r} from UTC")
    sign, hours, minutes = found.groups()
    return timedelta(hours=int(f"{sign}{hours}"), minutes=int(f"{sign}{minutes}"))


def _time(header: Dataset, date: str, time: str) -> datetime:
    return _parsed(header, text(header, date), text(header, time))


def _parsed(header: Dataset, date: str, time: str) -> datetime:
    found = _TIME.fullmatch(time)
    error = _refuse(header, f"has the date and time {date!r} {time!r}")
    if found is None or not _DATE.fullmatch(date):
        raise error
    minutes, seconds, fraction = found.groups("")
    digits = f"{date}{minutes}{seconds:0<2}{fraction:0<6}"
    try:
        return datetime.strptime(digits, "%Y%m%d%H%M%S%f")  # noqa: DTZ007  # local
    except ValueError:
        raise error from None


def _refuse(header: Dataset, what: str) -> InputError:
    return InputError(
        f"{name_of(header)} {what}, so its standardised uptake values are not known. Choose a PET "
        "series that is corrected for attenuation and decay, with weight, activity and times.",
        subject=text(header, "SOPInstanceUID"),
    )
