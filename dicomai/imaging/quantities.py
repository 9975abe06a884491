"""Standardised uptake values of PET by body weight (PS3.3 C.8.9.1; QIBA's FDG-PET profile).

An Enhanced PET object says by other attributes the same (PS3.3 C.8.22): its units by the mapping of
real world values, the activity in MBq, and the time that values are corrected to by itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from pydicom import Dataset
from pydicom.uid import EnhancedPETImageStorage

from dicomai.errors import InputError
from dicomai.imaging.attributes import items_of, name_of, numbers, text

_GRAMS: Final = 1000.0
_LONGEST: Final = timedelta(days=2)
"""Between injection and scan; what is longer is a wrong date."""
_HALF_LIVES: Final = 10.0
"""The same: a thousandth of the activity is left, of which no scanner makes an image."""
_KILOGRAMS: Final = (0.2, 500.0)
_BECQUERELS: Final = (1e5, 1e12)
_HALF_LIFE_S: Final = (30.0, 1e7)
"""What is beyond these is in another unit."""
_MEGA: Final = 1e6
_SAME: Final = (
    "PatientWeight",
    "CorrectedImage",
    "DecayCorrection",
    "DecayCorrected",
    "AttenuationCorrected",
    "DecayCorrectionDateTime",
)
_SAME_OF_DRUG: Final = (
    "RadionuclideTotalDose",
    "RadionuclideHalfLife",
    "RadiopharmaceuticalStartDateTime",
    "RadiopharmaceuticalStartTime",
)
_UCUM: Final = {
    "Bq/ml": "BQML",
    "Bq/mL": "BQML",
    "g/ml{SUVbw}": "GML",
    "g/mL{SUVbw}": "GML",
}
"""Units of Enhanced PET (PS3.16 CID 84, 85) as PET has them; g/ml alone may be of another type."""
_ONE_SCALE: Final = 1e-6
"""Relative: so near are two slopes that are one."""
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

    Parameters
    ----------
    headers
        Of each slice; a frame of Enhanced PET laid out flat.

    Raises
    ------
    InputError
        The series is no PET, not corrected for decay, or lacks weight, activity or times.
    """
    first = headers[0]
    if text(first, "Modality") != "PT":
        raise _refuse(first, f"is {text(first, 'Modality') or 'of no modality'} and no PET")
    units = {_units(header) for header in headers}
    if units == {"GML"}:
        kinds = {text(header, "SUVType").upper() for header in headers}
        if others := sorted(kinds - {"", "BW"}):
            raise _refuse(first, f"holds SUV of the type {others[0]}, not by body weight")
        return 1.0
    if units != {"BQML"}:
        raise _refuse(first, f"is in units of {', '.join(sorted(units)) or 'nothing'}, not Bq/mL")
    if not {"ATTN", "DECY"} <= _corrections(first):
        raise _refuse(first, "is not corrected for attenuation and decay")
    for keyword in _SAME:
        if len({text(header, keyword) for header in headers}) > 1:
            raise _refuse(first, f"has slices of different {keyword}")
    for keyword in _SAME_OF_DRUG:
        if len({_of_drug(header, keyword) for header in headers}) > 1:
            raise _refuse(first, f"has slices of different {keyword}")
    (weight_kg,) = numbers(first, "PatientWeight", 1)
    items = items_of(first, "RadiopharmaceuticalInformationSequence")
    if not items:
        raise _refuse(first, "says nothing of the radiopharmaceutical")
    if len(items) > 1:
        raise _refuse(first, f"was made with {len(items)} radiopharmaceuticals")
    (activity_bq,) = numbers(items[0], "RadionuclideTotalDose", 1)
    if _is_enhanced(first):
        activity_bq *= _MEGA
    if not _within(weight_kg, _KILOGRAMS) or not _within(activity_bq, _BECQUERELS):
        raise _refuse(
            first, f"has a weight of {weight_kg:g} kg and an activity of {activity_bq:g} Bq"
        )
    return weight_kg * _GRAMS / (activity_bq * _left(headers, items[0]))


def _is_enhanced(header: Dataset) -> bool:
    return text(header, "SOPClassUID") == EnhancedPETImageStorage


def _units(header: Dataset) -> str:
    """Return the units (PS3.3 C.8.9.1.1.3); those of Enhanced PET are of its rescaled values."""
    if not _is_enhanced(header):
        return text(header, "Units").upper()
    said = {
        text(unit, "CodeValue")
        for item in items_of(header, "RealWorldValueMappingSequence")
        for unit in items_of(item, "MeasurementUnitsCodeSequence", header)
        if _is_rescale(header, item) and text(unit, "CodingSchemeDesignator") == "UCUM"
    }
    if len(said) != 1:
        raise _refuse(
            header,
            f"gives {len(said) or 'no'} units for its rescaled values "
            "(Real World Value Mapping Sequence)",
        )
    return _UCUM.get(*said, *said)


def _is_rescale(header: Dataset, mapping: Dataset) -> bool:
    """Tell whether a mapping of stored to real world values is that of the rescale."""
    for keyword in ("Slope", "Intercept"):
        (rescale,) = numbers(header, f"Rescale{keyword}", 1)
        if not text(mapping, f"RealWorldValue{keyword}"):
            return False  # it has a table
        (real,) = numbers(mapping, f"RealWorldValue{keyword}", 1)
        if not math.isclose(rescale, real, rel_tol=_ONE_SCALE):
            return False
    return True


def _corrections(header: Dataset) -> set[str]:
    if not _is_enhanced(header):
        return set(text(header, "CorrectedImage").upper().split("\\"))
    said = {"DECY": "DecayCorrected", "ATTN": "AttenuationCorrected"}
    return {each for each, keyword in said.items() if text(header, keyword).upper() == "YES"}


def _left(headers: Sequence[Dataset], item: Dataset) -> float:
    """Return the fraction of the injected activity that is left when the values count."""
    first = headers[0]
    if _is_enhanced(first):
        injected, scan, *acquired = _on_one_clock(
            first,
            text(item, "RadiopharmaceuticalStartDateTime"),
            text(first, "DecayCorrectionDateTime"),
            *(
                text(header, "FrameAcquisitionDateTime") or text(header, "AcquisitionDateTime")
                for header in headers
            ),
        )
        if scan > min(acquired):
            raise _refuse(first, "is corrected for decay to a time after its first frame")
        return _decayed(first, item, injected, scan)
    corrected = text(first, "DecayCorrection").upper()
    if corrected == "ADMIN":
        return 1.0
    if corrected != "START":
        raise _refuse(first, f"has the decay correction {corrected or 'not stated'}")
    scan, *others = {_time(header, "SeriesDate", "SeriesTime") for header in headers}
    if others:
        raise _refuse(first, "has slices of different SeriesTime")
    started = min(_time(header, "AcquisitionDate", "AcquisitionTime") for header in headers)
    if scan > started:
        # Some modalities give a processed series the time of the processing.
        raise _refuse(first, "says that its series began after its first slice was acquired")
    return _decayed(first, item, _injected(first, item, scan), scan)


def _decayed(first: Dataset, item: Dataset, injected: datetime, scan: datetime) -> float:
    """Return the fraction that is left of an activity from one time to another."""
    (half_life_s,) = numbers(item, "RadionuclideHalfLife", 1)
    if not _within(half_life_s, _HALF_LIFE_S):
        raise _refuse(first, f"has a half-life of {half_life_s:g} s")
    longest = min(_LONGEST, timedelta(seconds=_HALF_LIVES * half_life_s))
    if not timedelta(0) <= scan - injected <= longest:
        raise _refuse(first, f"was injected at {injected} and scanned at {scan}")
    return float(2 ** (-(scan - injected).total_seconds() / half_life_s))


def _of_drug(header: Dataset, keyword: str) -> str:
    items = items_of(header, "RadiopharmaceuticalInformationSequence")
    return text(items[0], keyword) if items else ""


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
    found, offset = _stamp(header, stamp)
    if not offset:
        return found
    clock = text(header, "TimezoneOffsetFromUTC")
    if clock:
        return found - _offset(header, offset) + _offset(header, clock)
    # The time alone is by the header's clock, so this tells whether the stamp is too.
    if time and abs(found - _parsed(header, stamp[:8], time)) < _ROUNDED:
        return found
    raise _refuse(header, f"gives only its injection with an offset from UTC ({offset})")


def _stamp(header: Dataset, said: str) -> tuple[datetime, str]:
    """Return a date and time as it stands there, and its offset from UTC; "" where it has none."""
    plain, offset = (said[:-5], said[-5:]) if said[-5:-4] in ("+", "-") else (said, "")
    return _parsed(header, plain[:8], plain[8:]), offset


def _on_one_clock(header: Dataset, *said: str) -> list[datetime]:
    """Return dates and times by one clock: their own where it is the same, else the header's."""
    stamps = [_stamp(header, each) for each in said]
    if len({offset for _, offset in stamps}) == 1:
        return [found for found, _ in stamps]
    clock = text(header, "TimezoneOffsetFromUTC")
    if not clock:
        raise _refuse(header, "gives times of different offsets from UTC, or only some with one")
    local = _offset(header, clock)
    return [
        found - _offset(header, offset) + local if offset else found for found, offset in stamps
    ]


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
