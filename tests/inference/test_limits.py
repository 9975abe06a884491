"""What a model was not made for is not analysed, and the sentence says why."""

from __future__ import annotations

import numpy as np
import pytest

from dicomai.errors import InputError
from dicomai.imaging.facts import Facts
from dicomai.imaging.geometry import Grid, Plane
from dicomai.inference.limits import check
from dicomai.models.input import Limits

LIMITS = Limits(
    modality=("CT",),
    age_years=(18, 90),
    sex=("M", "F"),
    body_part=("CHEST", "THORAX"),
    slice_spacing_mm=(0.5, 3.0),
    pixel_spacing_mm=(0.4, 1.0),
    coverage_mm=200,
)
ADULT = Facts(modality="CT", age_years=50, sex="F", body_part="CHEST")


def grid(spacing: tuple[float, float, float] = (2.5, 0.7, 0.7), slices: int = 120) -> Grid:
    return Grid(
        shape_kji=(slices, 512, 512),
        index_to_lps=np.diag([*spacing, 1.0]),
        frame_of_reference_uid="1.2",
    )


def test_within_the_limits_nothing_is_said() -> None:
    check(LIMITS, ADULT, grid(), "lungs", "1.2.3")


@pytest.mark.parametrize(
    ("changed", "where", "words"),
    [
        ({"modality": "MR"}, grid(), "the modality is MR, allowed CT"),
        ({"age_years": 9.6}, grid(), "the patient is 10 years old, allowed 18 to 90"),
        ({"age_years": None}, grid(), "the patient's age is not known"),
        ({"sex": "O"}, grid(), "the sex is O, allowed M, F"),
        ({"body_part": ""}, grid(), "the body part is not stated"),
        ({"body_part": "HEAD"}, grid(), "the body part is HEAD, allowed CHEST, THORAX"),
        ({}, grid((5, 0.7, 0.7)), "the slice spacing is 5.00 mm, allowed 0.5 to 3 mm"),
        ({}, grid((2.5, 0.7, 1.2)), "the pixel spacing is 1.20 mm, allowed 0.4 to 1 mm"),
        ({}, grid(slices=40), "it covers 100 mm, needed 200 mm"),
        (
            {},
            Plane(shape_ji=(9, 9), spacing_ji_mm=None, sop_instance_uid="1"),
            "the pixel spacing is not stated",
        ),
    ],
)
def test_what_lies_outside_is_named(
    changed: dict[str, object], where: Grid | Plane, words: str
) -> None:
    facts = Facts(
        **{name: changed.get(name, getattr(ADULT, name)) for name in Facts.__dataclass_fields__}
    )
    with pytest.raises(InputError) as error:
        check(LIMITS, facts, where, "lungs", "1.2.3")
    assert error.value.sentence == (
        "Series 1.2.3 was not analysed by lungs, because it lies outside its limits: " + words + "."
    )


def test_all_that_lies_outside_is_named_at_once() -> None:
    with pytest.raises(InputError) as error:
        check(LIMITS, Facts(modality="MR"), grid(slices=2), "lungs", "1.2.3")
    assert error.value.sentence.count(";") == 4


def test_what_may_be_missing_is_allowed() -> None:
    limits = LIMITS.model_copy(update={"allow_missing": ("age", "sex", "body_part")})
    check(limits, Facts(modality="CT"), grid(), "lungs", "1.2.3")
    with pytest.raises(InputError, match="10 years old"):
        check(limits, Facts(modality="CT", age_years=10), grid(), "lungs", "1.2.3")
