"""Findings in one line, for tables, logs and the conclusion of a report."""

from __future__ import annotations

import numpy as np

from dicomai.dicom.codes import Code
from dicomai.findings import Classification, Detection, Findings, Measurement, Segment

_VOLUME = Code("118565006", "SCT", "Volume")
MOST_NAMED = 4
_UNITS = {"[hnsf'U]": "HU", "1": "", "mm3": "mm3", "mL": "mL", "mm": "mm", "%": "%"}


def line(findings: Findings) -> str:
    """Return what was found, as `Right lung 2,310 mL, left lung 1,980 mL`.

    Where nothing was found, what was sought stands there: a reader must be able to tell "none"
    from "not looked for". Plain ASCII, so that it fits every character set if the labels do.
    """
    if findings.not_analysed:
        return f"not analysed: {findings.not_analysed}"
    if findings.nothing_found and not findings.classifications:
        return f"nothing found; looked for {_lowered(findings.sought)}"
    parts = [
        text
        for text in (
            _segments(findings.segments),
            _detections(findings.detections),
            ", ".join(_classification(each) for each in findings.classifications),
        )
        if text
    ]
    return "; ".join(parts)


def plain(findings: Findings, looked_at: str) -> str:
    """Return what was found in whole sentences, for who does not know the model.

    Parameters
    ----------
    looked_at
        What the model saw, as `133 images of 1 series`.
    """
    algorithm = findings.algorithm
    program = f"A computer program ({algorithm.name} {algorithm.version})"
    said = [f"{program} looked at {looked_at}."]
    if findings.not_analysed:
        said = [f"{program} could not look at these images: {findings.not_analysed}"]
    elif findings.nothing_found and not findings.classifications:
        said.append(f"It found nothing of what it looks for: {_lowered(findings.sought)}.")
    there = [each for each in findings.segments if each.mask.any()]
    if there:
        said.append(f"It outlined: {', '.join(map(_outlined, there))}.")
    missing = [_lowered(each.label) for each in findings.segments if not each.mask.any()]
    if missing and not findings.nothing_found:
        said.append(f"It did not find: {', '.join(missing)}.")
    if findings.detections:
        count = len(findings.detections)
        places = "1 place" if count == 1 else f"{count} places"
        surest = max(findings.detections, key=lambda each: each.probability)
        said.append(
            f"It marked {places} for a look; of the surest ({_lowered(kind(surest))}) it is "
            f"{percent(surest.probability)} certain."
        )
    said += [
        f"Of {_lowered(each.label)} it says: {'present' if each.present else 'not present'} "
        f"({percent(each.probability)})."
        for each in findings.classifications
    ]
    if findings.not_analysed:
        return said[0]
    said.append("It can be wrong, and no one has checked what it says.")
    return " ".join(said)


def _outlined(segment: Segment) -> str:
    volume = next((m for m in segment.measurements if m.name.same_concept(_VOLUME)), None)
    return _lowered(segment.label) + (f" ({measured(volume)})" if volume else "")


def measured(measurement: Measurement) -> str:
    """Return a number with its unit, as `2,310 mL`, or `2,310 +/- 45 mL`."""
    unit = _UNITS.get(measurement.unit.value, measurement.unit.value)
    value = number(measurement.value)
    if measurement.uncertainty is not None:
        value = f"{value} +/- {number(measurement.uncertainty)}"
    return f"{value} {unit}".strip()


def number(value: float) -> str:
    """Return a number with two to four digits that mean something, thousands set apart."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 1:  # a ball of 4 mm has 0.034 mL, and that is not 0
        return np.format_float_positional(value, precision=2, fractional=False, trim="-")
    return f"{value:.1f}".removesuffix(".0")


def percent(probability: float) -> str:
    """Return a probability as `87 %`; never rounded to a certainty that the model did not claim."""
    rounded = round(probability * 100)
    if rounded >= 100 and probability < 1:
        return "> 99 %"
    if rounded <= 0 and probability > 0:
        return "< 1 %"
    return f"{rounded} %"


def kind(detection: Detection) -> str:
    """Return what was detected, without the number that tells it from others of its kind."""
    return detection.label.rstrip(" 0123456789#") or detection.finding.meaning


def _segments(segments: tuple[Segment, ...]) -> str:
    said = []
    for segment in segments:
        if not segment.mask.any():
            said.append(f"no {_lowered(segment.label)}")
            continue
        volume = next((m for m in segment.measurements if m.name.same_concept(_VOLUME)), None)
        first = volume or next(iter(segment.measurements), None)
        said.append(f"{_lowered(segment.label)} {measured(first)}" if first else segment.label)
    return _capital(", ".join(said))


def _detections(detections: tuple[Detection, ...]) -> str:
    if not detections:
        return ""
    ordered = sorted(detections, key=lambda each: -each.probability)
    kinds: dict[str, list[Detection]] = {}
    for each in ordered:
        kinds.setdefault(kind(each), []).append(each)
    said = []
    for name, members in kinds.items():
        count = f"{len(members)} {_lowered(name)}{'s' if len(members) > 1 else ''}"
        sizes = [_detection(each) for each in members[:MOST_NAMED]]
        if len(members) > MOST_NAMED:
            sizes.append(f"{len(members) - MOST_NAMED} more")
        said.append(f"{count}: {', '.join(sizes)}")
    return "; ".join(said)


def _detection(detection: Detection) -> str:
    length = next((m for m in detection.measurements if m.unit.value == "mm"), None)
    size = f"{measured(length)} " if length else ""
    return f"{size}({percent(detection.probability)})"


def _classification(classification: Classification) -> str:
    verdict = "present" if classification.present else "not present"
    return (
        f"{_capital(classification.label)} {verdict} ({percent(classification.probability)}, "
        f"threshold {percent(classification.threshold)})"
    )


def _lowered(text: str) -> str:
    """Return a label as it stands inside a sentence; abbreviations keep their capitals."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
