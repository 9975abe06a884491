"""Findings in one line, for tables, logs and the conclusion of a report."""

from __future__ import annotations

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


def measured(measurement: Measurement) -> str:
    """Return a number with its unit, as `2,310 mL`."""
    unit = _UNITS.get(measurement.unit.value, measurement.unit.value)
    return f"{number(measurement.value)} {unit}".strip()


def number(value: float) -> str:
    """Return a number with three or four digits that mean something, thousands set apart."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
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
