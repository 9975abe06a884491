"""Which series, or which image, each input of a model gets, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dicomai.dicom.header import BODY_PART, REGION
from dicomai.errors import ConfigError
from dicomai.routing.condition import (
    INSTANCES,
    Condition,
    Seen,
    check_subject,
    holds,
    number,
    parse,
    values_of,
    vr_of,
)
from dicomai.routing.image import Image, Series

InputKind = Literal["volume", "image"]
InputSource = Literal["study", "prior"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """A key to order candidates by; the smallest comes first, unless it is descending.

    Attributes
    ----------
    by
        A DICOM keyword or "instances", or a condition: those that fulfil it come first.
    """

    by: str | Condition
    descending: bool = False

    def __str__(self) -> str:
        return f"{'-' if self.descending else ''}{self.by}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input of a model.

    Attributes
    ----------
    kind
        "volume": a series; "image": a single image.
    source
        "study": of the study that is analysed; "prior": of an earlier one of the same patient.
    max_age_days
        A prior is at most so much older; None: of any age.
    optional
        The model runs without it too.
    for_processing
        Whether an image may hold the raw values of a detector.
    """

    name: str
    kind: InputKind
    when: tuple[Condition, ...] = ()
    prefer: tuple[Preference, ...] = ()
    source: InputSource = "study"
    max_age_days: int | None = None
    optional: bool = False
    for_processing: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInputs:
    """What routing has to know of a model package."""

    package_sha256: str
    inputs: tuple[InputSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What an input may get: a series without what was excluded, or one image of it."""

    series: Series
    title: str

    @property
    def images(self) -> tuple[Image, ...]:
        """All that the model would be given."""
        return self.series.images


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """Why candidates of one series do not fit: said once, however many they are.

    Attributes
    ----------
    title
        How a sentence calls them.
    """

    title: str
    number: int
    reason: str

    @property
    def sentence(self) -> str:
        """Who does not fit, and why."""
        return f"{self.title} {'does' if self.number == 1 else 'do'} not fit: {self.reason}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What an input gets.

    Attributes
    ----------
    runners_up
        A sentence for each candidate that came after it.
    misfits
        All that do not fit.
    """

    input: str
    chosen: Candidate | None
    runners_up: tuple[str, ...] = ()
    misfits: tuple[Misfit, ...] = ()

    @property
    def rejected(self) -> tuple[str, ...]:
        """A sentence for each misfit."""
        return tuple(each.sentence for each in self.misfits)


def parse_input(
    name: str,
    kind: InputKind,
    when: Iterable[str],
    prefer: Iterable[str],
    *,
    source: InputSource = "study",
    max_age_days: int | None = None,
    optional: bool = False,
    for_processing: bool = True,
) -> InputSpec:
    """Return an input from the texts of a manifest; a ConfigError says which is wrong."""
    return InputSpec(
        name=name,
        kind=kind,
        when=tuple(parse(text) for text in when),
        prefer=tuple(parse_preference(text) for text in prefer),
        source=source,
        max_age_days=max_age_days,
        optional=optional,
        for_processing=for_processing,
    )


def parse_preference(text: str) -> Preference:
    """Return the preference that a text says: `-instances`, `ConvolutionKernel ~ B[34]0`."""
    descending = text.strip().startswith("-")
    bare = text.strip().removeprefix("-").strip()
    if not bare:
        raise ConfigError(
            f'"{text}" is no preference: write a keyword or a condition.', subject=text
        )
    if " " in bare or not bare.isalnum():
        return Preference(by=parse(bare), descending=descending)
    check_subject(bare)
    return Preference(by=bare, descending=descending)


def choose(spec: InputSpec, series: Sequence[Series], also: Sequence[Condition] = ()) -> Choice:
    """Return which candidate an input gets.

    Parameters
    ----------
    spec
        The input.
    series
        What the route's exclusions left of each series of the study.
    also
        Further conditions: those of the route.
    """
    fitting: list[Candidate] = []
    rejected: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in (each for one in series for each in _candidates(spec, one)):
        reason = (
            _misfit(candidate, also, "route")
            or _misfit(candidate, spec.when, "model")
            or (_no_single_image(spec, candidate) if spec.kind == "image" else None)
        )
        if reason is None:
            fitting.append(candidate)
        else:
            of_series = rejected.setdefault((candidate.series.series_instance_uid, reason), [])
            of_series.append(candidate)
    fitting.sort(key=lambda candidate: _order(candidate, spec.prefer))
    return Choice(
        input=spec.name,
        chosen=fitting[0] if fitting else None,
        runners_up=tuple(_why_after(fitting[0], each, spec.prefer) for each in fitting[1:]),
        misfits=tuple(_why_not(each, reason) for (_, reason), each in rejected.items()),
    )


def _why_not(rejected: Sequence[Candidate], reason: str) -> Misfit:
    first = rejected[0]
    whole = Series(series_instance_uid=first.series.series_instance_uid, images=first.images)
    number = len(rejected)
    title = first.title if number == 1 else f"{number} images of {whole.title}"
    return Misfit(title=title, number=number, reason=reason)


def _candidates(spec: InputSpec, series: Series) -> list[Candidate]:
    if spec.kind == "volume" or len(series.images) == 1:
        return [Candidate(series=series, title=series.title)]
    return [
        Candidate(
            series=Series(series_instance_uid=series.series_instance_uid, images=(image,)),
            title=f"image {image.sop_instance_uid} of {series.title}",
        )
        for image in series.images
    ]


def _seen(candidate: Candidate, image: Image) -> Seen:
    return Seen(
        attributes=image.attributes, instances=len(candidate.images), calling_node=image.node
    )


def _misfit(candidate: Candidate, conditions: Sequence[Condition], whose: str) -> str | None:
    """Return the first condition that an image doesn't fulfil, with what the image has."""
    for condition in conditions:
        for image in candidate.images:
            if not holds(condition, _seen(candidate, image)):
                has = _has(candidate, image, condition.subject)
                return f'the {whose} wants "{condition}", and it has {has}'
    return None


def _no_single_image(spec: InputSpec, candidate: Candidate) -> str | None:
    """Return why a candidate would be refused as a single image: it is a loop, or raw values."""
    said = candidate.images[0].attributes
    frames = said.get("NumberOfFrames")
    if isinstance(frames, float | int) and frames > 1:
        return f"the model wants a single image, and it has {frames:.12g} frames"
    if said.get("PresentationIntentType") == "FOR PROCESSING" and not spec.for_processing:
        return "the model wants an image as it is shown, and it is one for processing"
    return None


def _has(candidate: Candidate, image: Image, subject: str) -> str:
    if subject == INSTANCES:
        return str(len(candidate.images))
    values = values_of(image.attributes, subject)
    has = "\\".join(_text(value) for value in values)
    if not values:
        has = image.node if subject == "calling_node" else f"no {subject}"
    return has + _by_code(image, has) if subject == BODY_PART else has


def _by_code(image: Image, part: str) -> str:
    """Return what Anatomic Region Sequence says beside Body Part Examined, which may come of it."""
    regions = [each for each in values_of(image.attributes, REGION) if isinstance(each, str)]
    if not regions:
        return ""
    if regions == [part]:
        return " (as its Anatomic Region Sequence says)"
    return f" (its Anatomic Region Sequence says {', '.join(regions)})"


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.12g}"


_Key = tuple[bool, float, str]


def _order(candidate: Candidate, prefer: Sequence[Preference]) -> tuple[object, ...]:
    series_number = _key(candidate, Preference(by="SeriesNumber"))
    instance_number = _key(candidate, Preference(by="InstanceNumber"))
    uids = (candidate.series.series_instance_uid, candidate.images[0].sop_instance_uid)
    keys = tuple(_key(candidate, preference) for preference in prefer)
    return (*keys, series_number, uids[0], instance_number, uids[1])


def _key(candidate: Candidate, preference: Preference) -> _Key:
    """Return a value to order by: what is absent comes last, numbers before text."""
    sign = -1.0 if preference.descending else 1.0
    first = candidate.images[0]
    if isinstance(preference.by, Condition):
        fulfilled = all(holds(preference.by, _seen(candidate, each)) for each in candidate.images)
        return (False, -sign if fulfilled else sign, "")
    if preference.by == INSTANCES:
        return (False, sign * len(candidate.images), "")
    values = values_of(first.attributes, preference.by)
    if not values:
        return (True, 0.0, "")
    value = number(values[0], vr_of(preference.by))
    if value is not None:
        return (False, sign * value, "")
    text = str(values[0]).casefold()
    return (False, float("inf"), _reversed(text) if preference.descending else text)


def _reversed(text: str) -> str:
    return "".join(chr(0x10FFFF - ord(character)) for character in text) + chr(0x10FFFF)


def _why_after(chosen: Candidate, other: Candidate, prefer: Sequence[Preference]) -> str:
    for preference in prefer:
        if _key(chosen, preference) != _key(other, preference):
            if isinstance(preference.by, Condition):
                reason = f'"{preference}" tells them apart'
            else:
                theirs, ours = (
                    _has(each, each.images[0], preference.by) for each in (other, chosen)
                )
                reason = f"by {preference} it has {theirs}, the chosen one {ours}"
            return f"{other.title} fits too, and comes after: {reason}."
    return f"{other.title} fits as well, and has the later Series Number or UID."
