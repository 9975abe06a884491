"""When a study counts as whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomai.dicom.dates import Instant, seconds
from dicomai.routing.completeness import (
    Arrival,
    Host,
    NotYet,
    Wait,
    Whole,
    decide,
    gaps_of,
)
from dicomai.routing.image import Image

WAITS = {
    "PACS": Wait(quiet=seconds(60), floor=seconds(10), association_per_study=False),
    "CT": Wait(quiet=seconds(60), floor=seconds(10), association_per_study=True),
    "SLOW": Wait(quiet=seconds(300), floor=seconds(10), association_per_study=False),
}


def _at(second: float) -> Instant:
    return Instant(1_700_000_000_000_000 + seconds(second))


def _decide(
    arrival: Arrival, second: float, hosts: Sequence[Host] | None = None, gaps: Sequence[str] = ()
) -> NotYet | Whole:
    return decide(
        arrival,
        gaps,
        [Host(name="here", ingested_to=_at(second))] if hosts is None else hosts,
        quiet_until=arrival.quiet_until(WAITS),
        patience=seconds(900),
        now=_at(second),
    )


def test_a_study_is_whole_when_its_node_was_quiet() -> None:
    arrival = Arrival().received("PACS", "a", _at(0)).ended("a", _at(1), released=True)

    assert isinstance(_decide(arrival, 59), NotYet)
    assert isinstance(_decide(arrival, 60), Whole)


def test_with_several_nodes_the_latest_wins() -> None:
    arrival = Arrival().received("SLOW", "a", _at(0)).received("PACS", "b", _at(50))
    arrival = arrival.ended("a", _at(50), released=True).ended("b", _at(51), released=True)

    assert isinstance(_decide(arrival, 120), NotYet)
    assert isinstance(_decide(arrival, 300), Whole)


def test_a_clean_release_allows_the_floor() -> None:
    arrival = Arrival().received("CT", "a", _at(0)).ended("a", _at(5), released=True)

    assert isinstance(_decide(arrival, 14), NotYet)
    assert isinstance(_decide(arrival, 15), Whole)


def test_an_abort_is_no_evidence() -> None:
    arrival = Arrival().received("CT", "a", _at(0)).ended("a", _at(5), released=False)

    assert isinstance(_decide(arrival, 59), NotYet)


def test_objects_after_a_release_bring_the_full_quiet_back() -> None:
    arrival = Arrival().received("CT", "a", _at(0)).ended("a", _at(5), released=True)
    arrival = arrival.received("CT", "b", _at(12)).ended("b", _at(13), released=True)

    assert isinstance(_decide(arrival, 71), NotYet)
    assert isinstance(_decide(arrival, 72), Whole)


def test_an_open_association_of_the_study_vetoes_until_patience() -> None:
    arrival = Arrival().received("PACS", "a", _at(0))

    refused = _decide(arrival, 899)
    assert isinstance(refused, NotYet)
    assert "an association of PACS" in refused.because
    assert refused.again_at == _at(900)
    allowed = _decide(arrival, 900)
    assert isinstance(allowed, Whole)
    assert "although an association of PACS" in allowed.because


def test_a_second_open_association_of_the_node_keeps_its_release_from_counting() -> None:
    arrival = Arrival().received("CT", "a", _at(0)).received("CT", "b", _at(1))
    arrival = arrival.ended("a", _at(2), released=True)

    assert arrival.quiet_until(WAITS) == _at(61)


def test_gaps_veto_until_patience() -> None:
    arrival = Arrival().received("PACS", "a", _at(0)).ended("a", _at(1), released=True)
    gap = "series 1 has no slice at 42.5 mm"

    refused = _decide(arrival, 100, gaps=[gap])
    assert isinstance(refused, NotYet)
    assert gap in refused.because
    assert isinstance(_decide(arrival, 900, gaps=[gap]), Whole)


def test_a_host_that_has_not_ingested_past_the_quiet_time_vetoes_and_is_named() -> None:
    arrival = Arrival().received("PACS", "a", _at(0)).ended("a", _at(1), released=True)
    hosts = [Host(name="here", ingested_to=_at(100)), Host(name="node2", ingested_to=_at(30))]

    refused = _decide(arrival, 100, hosts)
    assert isinstance(refused, NotYet)
    assert "host node2" in refused.because
    allowed = _decide(arrival, 901, hosts)
    assert isinstance(allowed, Whole)
    assert "host node2" in allowed.because


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_nothing_is_whole_before_every_object_was_quiet(times: list[int]) -> None:
    arrival = Arrival()
    for number, second in enumerate(times):
        arrival = arrival.received("PACS", str(number), _at(second))
        arrival = arrival.ended(str(number), _at(second), released=True)

    assert isinstance(_decide(arrival, max(times) + 59), NotYet)
    assert isinstance(_decide(arrival, max(times) + 60), Whole)


def _image(z: float, orientation: Sequence[float] = (1, 0, 0, 0, 1, 0)) -> Image:
    return Image(
        series_instance_uid="1",
        sop_instance_uid=f"1.{z}",
        sop_class_uid="1",
        header_digest="",
        pixel_digest=None,
        origin="received",
        node="CT",
        attributes={
            "ImagePositionPatient": [0.0, 0.0, z],
            "ImageOrientationPatient": list(orientation),
        },
    )


@pytest.mark.parametrize(
    ("positions", "missing"),
    [
        ([0, 5, 10, 15], ()),
        ([15, 5, 0, 20], (10.0,)),
        ([0, 5, 10, 25], (17.5,)),
        ([0, 5], ()),
        ([0, 0, 5, 5, 10, 10], ()),
        ([0, 5, 10, 15, 30, 35, 45, 50], (22.5, 40.0)),
    ],
)
def test_where_slices_are_missing(positions: list[float], missing: tuple[float, ...]) -> None:
    assert gaps_of([_image(each) for each in positions]) == missing


def test_slices_without_a_place_have_no_gaps() -> None:
    images = [_image(0, (0, 0, 0, 0, 0, 0)), _image(5), _image(1e30), _image(10), _image(15)]

    assert gaps_of(images) == ()
