"""Which series a model gets, why the others don't, and what is never input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import pytest

from dicomai.dicom.header import AttributeValue
from dicomai.models.package import load
from dicomai.models.registry import BUILTIN
from dicomai.routing.condition import parse
from dicomai.routing.exclusion import Excluded, exclude, kind_of
from dicomai.routing.fingerprint import fingerprint
from dicomai.routing.image import Image, Series, series_of
from dicomai.routing.matching import Matched, Unmatched, match
from dicomai.routing.route import Route
from dicomai.routing.selection import Choice, InputSpec, ModelInputs, choose, parse_input

TODAY = date(2026, 11, 21)
CT = "1.2.840.10008.5.1.4.1.1.2"


def _image(
    series: str, number: int = 1, sop_class: str = CT, **attributes: AttributeValue
) -> Image:
    found: dict[str, AttributeValue] = {
        "Modality": "CT",
        "Rows": 16.0,
        "PixelData": 512.0,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "StudyDate": "20261120",
        "SeriesNumber": float(series[-1]),
        "InstanceNumber": float(number),
    }
    found.update(attributes)
    return Image(
        series_instance_uid=series,
        sop_instance_uid=f"{series}.{number}",
        sop_class_uid=sop_class,
        header_digest="h",
        pixel_digest="p",
        origin="received",
        node="CT1",
        attributes=found,
    )


def _series(uid: str, count: int = 3, **attributes: AttributeValue) -> Series:
    (series,) = series_of(_image(uid, number, **attributes) for number in range(1, count + 1))
    return series


def _chosen(choice: Choice) -> str:
    assert choice.chosen is not None
    return choice.chosen.series.series_instance_uid


def _spec(*prefer: str, when: Sequence[str] = (), kind: str = "volume") -> InputSpec:
    return parse_input("ct", "image" if kind == "image" else "volume", when, prefer)


def test_the_thinnest_series_is_preferred_and_the_runner_up_named() -> None:
    study = [_series("1.1", SliceThickness=5.0), _series("1.2", SliceThickness=1.25)]

    choice = choose(_spec("SliceThickness"), study)

    assert _chosen(choice) == "1.2"
    (runner_up,) = choice.runners_up
    assert "series 1 (1.1) fits too" in runner_up
    assert "SliceThickness it has 5, the chosen one 1.25" in runner_up


def test_a_minus_prefers_the_largest() -> None:
    assert _chosen(choose(_spec("-instances"), [_series("1.1", 3), _series("1.2", 9)])) == "1.2"


def test_a_condition_as_preference_prefers_those_that_fulfil_it() -> None:
    study = [_series("1.1", ConvolutionKernel="B70f"), _series("1.2", ConvolutionKernel="B30f")]

    assert _chosen(choose(_spec("ConvolutionKernel ~ B[34]0"), study)) == "1.2"
    assert _chosen(choose(_spec("-ConvolutionKernel ~ B[34]0"), study)) == "1.1"


def test_keys_count_in_their_order_and_missing_values_come_last() -> None:
    study = [
        _series("1.1"),
        _series("1.2", SliceThickness=1.0, ConvolutionKernel="B70f"),
        _series("1.3", SliceThickness=1.0, ConvolutionKernel="B30f"),
    ]

    assert _chosen(choose(_spec("SliceThickness", "ConvolutionKernel"), study)) == "1.3"


def test_ties_go_by_series_number_then_uid() -> None:
    study = [_series("1.2"), _series("1.1", SeriesNumber=7.0), _series("1.3", SeriesNumber=2.0)]

    assert _chosen(choose(_spec(), study)) == "1.2"


def test_a_series_that_does_not_fit_says_why() -> None:
    choice = choose(_spec(when=["SliceThickness <= 3"]), [_series("1.1", SliceThickness=5.0)])

    assert choice.chosen is None
    assert choice.rejected == (
        'series 1 (1.1) does not fit: the model wants "SliceThickness <= 3", and it has 5.',
    )


def test_large_numbers_are_written_out() -> None:
    series = _series("1.1", SeriesNumber=3000566.0)

    assert series.title == "series 3000566 (1.1)"
    rejected = choose(_spec(when=["SeriesNumber = 3000565"]), [series]).rejected
    assert "and it has 3000566." in rejected[0]


def test_a_condition_must_hold_for_every_image() -> None:
    mixed = Series(
        series_instance_uid="1.1",
        images=(_image("1.1", 1, SliceThickness=1.0), _image("1.1", 2, SliceThickness=5.0)),
    )

    assert choose(_spec(when=["SliceThickness <= 3"]), [mixed]).chosen is None


def test_an_image_input_gets_one_image() -> None:
    views = Series(
        series_instance_uid="1.1",
        images=(_image("1.1", 1, ViewPosition="LL"), _image("1.1", 2, ViewPosition="PA")),
    )

    choice = choose(_spec(when=["ViewPosition in PA, AP"], kind="image"), [views])

    assert choice.chosen is not None
    assert [image.sop_instance_uid for image in choice.chosen.images] == ["1.1.2"]
    assert "LL" in choice.rejected[0]


def test_images_of_a_series_that_fail_alike_are_told_of_once() -> None:
    choice = choose(_spec(when=["Modality in DX, CR"], kind="image"), [_series("1.2", count=500)])
    (sentence,) = choice.rejected
    assert sentence.startswith("500 images of series 2 (1.2) do not fit:")
    assert "and it has CT" in sentence


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (_image("1.1"), None),
        (_image("1.1", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
        (_image("1.1", sop_class="1.2.840.10008.5.1.4.1.1.7"), "secondary"),
        (_image("1.1", sop_class="1.2.840.10008.5.1.4.1.1.7.4"), "secondary"),
        (_image("1.1", sop_class="1.2.840.10008.5.1.4.1.1.77.1.1"), None),
        (_image("1.1", ImageType=["DERIVED", "SECONDARY", "MPR"]), "derived"),
        (_image("1.1", ImageType=["DERIVED", "PRIMARY"], Modality="DX"), None),
        (_image("1.1", sop_class="1.2.840.10008.5.1.4.1.1.66.4"), "derived"),
        (_image("1.1", PixelData=""), None),
        (replace(_image("1.1"), origin="produced"), "produced"),
        (
            _image("1.1", ContributingEquipmentSequence=["ACME / CT", "dicomai / dicomai"]),
            "produced",
        ),
        (_image("1.1", ContributingEquipmentSequence=["ACME / dicomaion"]), None),
    ],
)
def test_what_is_never_input(image: Image, kind: str | None) -> None:
    assert kind_of(image) == kind


def test_an_object_without_pixels_is_no_image() -> None:
    image = _image("1.1")
    bare = {key: value for key, value in image.attributes.items() if key != "PixelData"}

    assert kind_of(replace(image, attributes=bare)) == "no image"


def test_a_scout_in_a_series_is_left_out_and_counted() -> None:
    series = Series(
        series_instance_uid="1.1",
        images=(_image("1.1", 1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), _image("1.1", 2)),
    )

    left, excluded = exclude(series, ())

    assert left is not None
    assert [image.sop_instance_uid for image in left.images] == ["1.1.2"]
    assert excluded == (
        Excluded(
            series_instance_uid="1.1",
            kind="localizer",
            count=1,
            sentence="1 of 2 objects of series 1 (1.1) left out: a localizer.",
        ),
    )


def test_a_route_can_allow_what_is_excluded() -> None:
    series = _series("1.1", ImageType=["DERIVED", "SECONDARY", "MPR"])

    assert exclude(series, ("derived",)) == (series, ())


def _model() -> ModelInputs:
    return ModelInputs(package_sha256="f" * 64, inputs=(_spec("SliceThickness"),))


def _route(**changes: object) -> Route:
    route = Route(name="lungs", model="chest-ct-lungs", when=(parse("Modality = CT"),))
    return replace(route, **changes)  # type: ignore[arg-type]  # each test knows its field


def test_a_route_matches_and_says_what_its_model_gets() -> None:
    outcome = match(_route(), _model(), [_series("1.1")], today=TODAY)

    assert isinstance(outcome, Matched)
    assert outcome.because == "chest-ct-lungs gets ct: series 1 (1.1)"
    assert len(outcome.images) == 3


def test_a_route_that_wants_nothing_says_why() -> None:
    outcome = match(_route(), _model(), [_series("1.1", Modality="MR")], today=TODAY)

    assert isinstance(outcome, Unmatched)
    assert '"Modality = CT", and it has MR' in outcome.because


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "off"}, "it is off"),
        ({"since": date(2026, 11, 21)}, "from 2026-11-21 on, and this one is of 2026-11-20"),
        ({"max_study_age_days": 0}, "from 2026-11-21 on, and this one is of 2026-11-20"),
        ({"max_study_age_days": 1}, None),
        ({"max_study_age_days": 1_000_000}, None),  # any age
        ({"since": date(2026, 11, 20)}, None),
    ],
)
def test_old_studies_and_routes_that_are_off_start_nothing(
    changes: dict[str, object], words: str | None
) -> None:
    outcome = match(_route(**changes), _model(), [_series("1.1")], today=TODAY)

    assert isinstance(outcome, Matched if words is None else Unmatched)
    assert (words or "") in outcome.because


def test_a_study_without_a_date_is_left_alone_by_a_route_with_an_age() -> None:
    outcome = match(
        _route(max_study_age_days=7), _model(), [_series("1.1", StudyDate="")], today=TODAY
    )

    assert isinstance(outcome, Unmatched)
    assert "has no Study Date" in outcome.because


def test_the_conditions_of_the_route_are_about_the_first_input() -> None:
    both = ModelInputs(
        package_sha256="f" * 64,
        inputs=(
            parse_input("ct", "volume", ["Modality = CT"], []),
            parse_input("pt", "volume", ["Modality = PT"], []),
        ),
    )
    study = [_series("1.1"), _series("1.2", Modality="PT")]

    outcome = match(_route(), both, study, today=TODAY)

    assert isinstance(outcome, Matched)
    assert [_chosen(choice) for choice in outcome.choices] == ["1.1", "1.2"]
    missing = match(_route(), both, study[:1], today=TODAY)
    assert isinstance(missing, Unmatched)
    assert "nothing fits input pt of chest-ct-lungs" in missing.because


def test_a_fingerprint_is_of_package_versions_and_generation() -> None:
    images = _series("1.1").images
    same = fingerprint("a", images, 0)

    assert fingerprint("a", reversed(images), 0) == same
    assert fingerprint("b", images, 0) != same
    assert fingerprint("a", images[:2], 0) != same
    assert fingerprint("a", images, 1) != same
    changed = replace(images[0], pixel_digest="q")
    assert fingerprint("a", (changed, *images[1:]), 0) != same


def test_the_model_of_chest_x_rays_takes_the_view_and_the_image_that_it_is_for() -> None:
    (spec,) = load(BUILTIN / "chest-xray-nodule").inputs
    lateral = _series("1.1", 1, Modality="DX", ViewPosition="LL")
    raw = _series(
        "1.2", 1, Modality="DX", ViewPosition="PA", PresentationIntentType="FOR PROCESSING"
    )
    shown = _series(
        "1.3", 1, Modality="DX", ViewPosition="PA", PresentationIntentType="FOR PRESENTATION"
    )
    assert _chosen(choose(spec, [lateral, raw, shown])) == "1.3"
    assert _chosen(choose(spec, [lateral, _series("1.4", 1, Modality="CR")])) == "1.1"
    (misfit,) = choose(spec, [raw]).rejected
    assert misfit.endswith("wants an image as it is shown, and it is one for processing.")
    assert _chosen(choose(replace(spec, for_processing=True), [raw])) == "1.2"


def test_a_still_goes_before_the_loop_beside_it() -> None:
    loop, still = (
        _image("1.2", number, Modality="US", InstanceNumber=number, **frames)
        for number, frames in ((1, {"NumberOfFrames": 60.0}), (2, {"NumberOfFrames": 1.0}))
    )
    choice = choose(_spec(kind="image"), series_of([loop, still]))
    assert choice.chosen is not None
    assert choice.chosen.images == (still,)
    (misfit,) = choice.rejected
    assert misfit.endswith("not fit: the model wants a single image, and it has 60 frames.")
    assert choose(_spec(kind="image"), series_of([loop])).chosen is None
    assert _chosen(choose(_spec(), series_of([loop]))) == "1.2"  # its frames may be slices
