"""When a study counts as whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomai.dicom.dates import Instant, seconds
from dicomai.dicom.header import AttributeValue
from dicomai.routing.completeness import (
    Arrived,
    Counted,
    Host,
    NotYet,
    Quiet,
    StepTold,
    Wait,
    Whole,
    after_object,
    after_release,
    completed,
    confirmed,
    decide,
    discontinued,
    gaps_of,
    lacking,
)
from dicomai.routing.image import Image

PACS = Wait(quiet=seconds(60), floor=seconds(10), association_per_study=False)
CT = Wait(quiet=seconds(60), floor=seconds(10), association_per_study=True)
SLOW = Wait(quiet=seconds(300), floor=seconds(10), association_per_study=False)


def _at(second: float) -> Instant:
    return Instant(1_700_000_000_000_000 + seconds(second))


def _host(name: str, ingested_to: float, beat_at: float) -> Host:
    return Host(name=name, ingested_to=_at(ingested_to), beat_at=_at(beat_at))


def _decide(
    second: float,
    *,
    quiet_until: float = 60,
    hosts: Sequence[Host] = (),
    open_at: tuple[str, ...] = (),
    gaps: tuple[str, ...] = (),
    counted: tuple[Counted, ...] = (),
    steps: tuple[StepTold, ...] = (),
) -> NotYet | Whole:
    return decide(
        Arrived(
            last_at=_at(0),
            quiet_until=_at(quiet_until),
            open_at=open_at,
            gaps=gaps,
            counted=counted,
            steps=steps,
        ),
        hosts or [_host("here", second, second)],
        patience=seconds(900),
        now=_at(second),
    )


def _counted(
    there: int, here: int, *, node: str = "PACS1", wanted: bool = True, fetched: bool = False
) -> Counted:
    return Counted(
        node=node,
        series_instance_uid="1.2",
        there=there,
        here=here,
        wanted=wanted,
        fetched=fetched,
    )


IN_PROGRESS = StepTold(node="CT1", state="in progress")
DISCONTINUED = StepTold(node="CT1", state="discontinued", made=4, missing=2)
ALL_HERE = StepTold(node="CT1", state="completed", made=4)


def test_a_study_is_whole_when_its_node_was_quiet() -> None:
    refused = _decide(59, hosts=[_host("its clock is ahead", 99, 99)])
    assert isinstance(refused, NotYet)
    assert (refused.again_at, refused.ordinary) == (_at(60), True)
    assert isinstance(_decide(60), Whole)


def test_each_object_moves_the_quiet_time_and_the_latest_node_wins() -> None:
    quiet = after_object(None, SLOW, _at(0), released_before=False)
    quiet = after_object(quiet, PACS, _at(50), released_before=False)

    assert quiet == Quiet(until=_at(300))


def test_a_clean_release_allows_the_floor() -> None:
    quiet = after_object(None, CT, _at(0), released_before=False)

    quiet = after_object(quiet, CT, _at(1), released_before=False)
    after = after_release(quiet, CT, _at(5), alone=True, released_before=False)
    assert after == Quiet(until=_at(15))


def test_a_release_says_nothing_of_a_node_that_does_not_promise_it() -> None:
    quiet = after_object(None, PACS, _at(0), released_before=False)

    after = after_release(quiet, PACS, _at(5), alone=True, released_before=False)
    assert after == Quiet(until=_at(60))


def test_a_release_says_nothing_while_others_send() -> None:
    quiet = after_object(None, CT, _at(0), released_before=False)

    after = after_release(quiet, CT, _at(5), alone=False, released_before=False)
    assert after == Quiet(until=_at(60))


def test_objects_after_a_release_bring_the_full_quiet_back_for_good() -> None:
    quiet = after_object(None, CT, _at(0), released_before=False)
    quiet = after_release(quiet, CT, _at(5), alone=True, released_before=False)
    quiet = after_object(quiet, CT, _at(12), released_before=True)

    assert quiet == Quiet(until=_at(72), full=True)
    after = after_release(quiet, CT, _at(13), alone=True, released_before=False)
    assert after == quiet
    assert after_object(quiet, CT, _at(20), released_before=False).full


def test_a_release_by_a_node_that_promises_nothing_shortens_nothing_and_takes_nothing() -> None:
    quiet = after_object(None, PACS, _at(0), released_before=False)

    assert not after_object(quiet, PACS, _at(5), released_before=True).full


def test_an_open_association_of_the_study_vetoes_until_patience() -> None:
    refused = _decide(899, open_at=("PACS", "PACS"))
    assert isinstance(refused, NotYet)
    assert refused.because == "An association of PACS that sent objects of it is open."
    assert refused.again_at == _at(900)
    allowed = _decide(900, open_at=("PACS",))
    assert isinstance(allowed, Whole)
    assert "came for 0:15:00, although an association of PACS" in allowed.because


def test_gaps_veto_until_patience() -> None:
    gap = "series 1 has no slice at 42.5 mm"

    refused = _decide(100, gaps=(gap,))
    assert isinstance(refused, NotYet)
    assert "eries 1 has no slice at 42.5 mm" in refused.because
    assert isinstance(_decide(900, gaps=(gap,)), Whole)
    at_once = _decide(60, gaps=(gap,))
    assert isinstance(at_once, NotYet)
    assert not at_once.ordinary


def test_a_host_that_has_not_ingested_past_the_quiet_time_vetoes_and_is_named() -> None:
    refused = _decide(100, hosts=[_host("here", 100, 100), _host("node2", 30, 30)])
    assert isinstance(refused, NotYet)
    assert "ost node2 has not yet ingested all that came until" in refused.because
    assert refused.again_at == _at(101)
    allowed = _decide(930, hosts=[_host("here", 930, 930), _host("node2", 30, 30)])
    assert isinstance(allowed, Whole)
    assert "host node2" in allowed.because


def test_a_host_that_works_off_a_backlog_vetoes_for_as_long_as_it_takes() -> None:
    assert isinstance(_decide(5000, hosts=[_host("here", 30, 30)]), NotYet)
    busy = [_host("here", 5000, 5000), _host("node2", 30, 4990)]
    refused = _decide(5000, hosts=busy)
    assert isinstance(refused, NotYet)
    assert (refused.again_at, refused.ordinary) == (_at(5001), False)


def test_only_a_host_that_is_long_behind_is_told_of() -> None:
    late = [_host("here", 59.9, 90)]
    refused = [_decide(at, hosts=late) for at in (60, 89.9, 90)]
    assert [isinstance(each, NotYet) and each.ordinary for each in refused] == [True, True, False]
    assert isinstance(_decide(90, hosts=[_host("here", 60, 90)]), Whole)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (IN_PROGRESS, "CT1 says that a procedure step of it is in progress"),
        (
            StepTold(node="CT1", state="completed", made=4, missing=1),
            "CT1 made 4 objects, and 1 of them are missing",
        ),
    ],
)
def test_what_a_modality_says_vetoes_until_patience(step: StepTold, words: str) -> None:
    refused = _decide(100, steps=(ALL_HERE, step))
    assert refused == NotYet(because=f"{words}.", again_at=_at(900))
    allowed = _decide(900, steps=(ALL_HERE, step))
    assert isinstance(allowed, Whole)
    assert words in allowed.because


@pytest.mark.parametrize("steps", [(), (ALL_HERE,), (DISCONTINUED,), (ALL_HERE, DISCONTINUED)])
def test_what_is_finished_or_was_broken_off_vetoes_nothing(steps: tuple[StepTold, ...]) -> None:
    assert isinstance(_decide(60, steps=steps), Whole)


@pytest.mark.parametrize(
    ("steps", "all_here", "broken_off"),
    [
        ((), False, False),
        ((ALL_HERE,), True, False),
        ((StepTold(node="CT1", state="completed"),), False, False),
        ((ALL_HERE, IN_PROGRESS), False, False),
        ((ALL_HERE, StepTold(node="CT1", state="completed", made=9, missing=1)), False, False),
        ((StepTold(node="CT1", state="completed", made=4, unlisted=1),), False, False),
        ((ALL_HERE, StepTold(node="CT1", state="discontinued")), True, False),
        ((StepTold(node="CT1", state="discontinued", made=4),), False, True),
    ],
)
def test_modalities_tell_that_all_is_here_or_was_broken_off(
    steps: tuple[StepTold, ...], all_here: bool, broken_off: bool
) -> None:
    assert (completed(steps), discontinued(steps)) == (all_here, broken_off)
    told = _decide(900, steps=steps)
    assert isinstance(told, Whole)
    assert ("it is all that the modality made" in told.because) == all_here


@pytest.mark.parametrize(
    ("counted", "lacks", "confirms"),
    [
        ((_counted(4, 4),), 0, ("PACS1",)),
        ((_counted(4, 3),), 1, ()),
        ((_counted(4, 3, wanted=False),), 0, ()),
        ((_counted(3, 4),), 0, ()),
        ((_counted(4, 0),), 0, ()),  # it never came, and nobody asks for it
        ((_counted(4, 0, fetched=True),), 1, ()),
        ((_counted(4, 3), _counted(4, 4)), 1, ()),
        ((_counted(4, 4), _counted(4, 3, wanted=False)), 0, ("PACS1",)),
        ((_counted(4, 4, node="B"), _counted(4, 4, node="A")), 0, ("A", "B")),
    ],
)
def test_what_a_node_counts_vetoes_or_confirms(
    counted: tuple[Counted, ...], lacks: int, confirms: tuple[str, ...]
) -> None:
    assert len(lacking(counted)) == lacks
    assert confirmed(counted) == confirms
    told = _decide(60, counted=counted)
    assert isinstance(told, NotYet if lacks else Whole)
    if not lacks:
        also = f", and {', '.join(confirms)} counts as many objects" if confirms else ""
        assert told.because == f"Nothing more came until 2023-11-14 22:14:20 UTC{also}."


def test_a_second_release_was_not_the_last_either() -> None:
    quiet = after_object(None, CT, _at(0), released_before=False)

    quiet = after_release(quiet, CT, _at(5), alone=True, released_before=True)
    assert quiet == Quiet(until=_at(60), full=True)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_nothing_is_whole_before_every_object_was_quiet(times: list[int]) -> None:
    quiet: Quiet | None = None
    for second in times:
        quiet = after_object(quiet, PACS, _at(second), released_before=False)

    assert quiet == Quiet(until=_at(max(times) + 60))


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
        ([0, 1, 5], (3.0,)),
        ([0, 1, 2, 3, 4.5], ()),
        ([0, 1, 2, 3, 5], (4.0,)),
        ([0, 5, 10, 15, 30, 35, 45, 50], (22.5, 40.0)),
    ],
)
def test_where_slices_are_missing(positions: list[float], missing: tuple[float, ...]) -> None:
    assert gaps_of([_image(each) for each in positions]) == missing


def test_slices_whose_directions_were_rounded_are_of_one_stack() -> None:
    turned = (0.999, 0.001, 0, -0.001, 0.999, 0)
    images = [_image(5.0 * k, turned if k == 2 else (1, 0, 0, 0, 1, 0)) for k in range(5)]
    assert gaps_of(images) == ()
    assert gaps_of(images[:2] + images[3:]) == (10.0,)


def test_slices_without_a_place_have_no_gaps() -> None:
    images = [_image(0, (0, 0, 0, 0, 0, 0)), _image(5), _image(1e30), _image(10), _image(15)]
    strange: list[AttributeValue] = ["30", 30.0, [0.0, 30.0], [0.0, "30", 30.0], [1e6, 0.0, 30.0]]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient"):
        for value in strange:
            away = _image(30)
            images.append(replace(away, attributes={**away.attributes, keyword: value}))
        images.append(replace(away, attributes={"ImagePositionPatient": [0.0, 0.0, 30.0]}))

    assert gaps_of(images) == ()
