"""The one line that tables show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dicomai.results import summary


def test_everything_in_one_line(study: Any, found: Any) -> None:
    assert summary.line(found.everything(study)) == (
        "Right lung 2,310 mL, left lung 1,980 mL, no accessory lobe; "
        "3 nodules: 6 +/- 0.5 mm (90 %), 6 +/- 0.5 mm (62 %), (51 %); "
        "Nodule not present (12 %, threshold 50 %)"
    )


def test_nothing_found_says_what_was_sought(study: Any, found: Any) -> None:
    findings = found.nothing(study)
    assert summary.line(findings) == f"nothing found; looked for {findings.sought}"


def test_many_detections_are_counted(study: Any, found: Any) -> None:
    many = tuple(found.ball(study, f"n{n}", (4.0, 9.0, 20.0)) for n in range(7))
    line = summary.line(replace(found.nothing(study), detections=many))
    assert line.startswith("7 ")
    assert line.endswith(", 3 more")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0335, "0.034"), (0.04, "0.04"), (0.000027, "0.000027"), (0.5, "0.5"), (0.0, "0"),
        (-0.04, "-0.04"), (0.999, "1"), (1.25, "1.2"), (99.0, "99"), (-850.4, "-850"),
        (2310.4567, "2,310"),
    ],
)  # fmt: skip
def test_a_small_number_is_not_nothing(value: float, said: str) -> None:
    assert summary.number(value) == said


@pytest.mark.parametrize(
    ("probability", "said"),
    [(0.999, "> 99 %"), (1.0, "100 %"), (0.004, "< 1 %"), (0.0, "0 %"), (0.87, "87 %")],
)
def test_a_probability_claims_no_more_than_it_is(probability: float, said: str) -> None:
    assert summary.percent(probability) == said
