"""From the data sets of a series to a volume in modality units on a grid in the patient."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from dicomai.errors import InputError
from dicomai.imaging.attributes import name_of, text, values_checked_here, whole
from dicomai.imaging.facts import Facts, facts_of, noted_of_part
from dicomai.imaging.frame import Frame, frames_of
from dicomai.imaging.geometry import Grid
from dicomai.imaging.greyscale import check_greyscale
from dicomai.imaging.intake import PLAIN, Intake
from dicomai.imaging.modality import ModalityTransform, check_one_scale, modality_transform
from dicomai.imaging.pixels import Samples, StoredPixels, in_parallel, stored_pixels
from dicomai.imaging.quantities import suv_body_weight_factor
from dicomai.imaging.split import Part, echo_time, split, words_of
from dicomai.imaging.stack import MIN_SLICES, stack

if TYPE_CHECKING:
    import highdicom

_ONE_KIND: Final = (
    "Modality",
    "ConvolutionKernel",
    "ComplexImageComponent",
    "Units",
    "RescaleType",
)
"""Values mean another thing, or look otherwise, where these differ."""
_USUAL_UNITS: Final = frozenset({"HU", "US"})
"""Of Rescale Type: what CT has, and unspecified; so has what does not say (PS3.3 C.11.1.1.2)."""
_ONE_ECHO: Final = 1.1
"""So many times the shortest echo time are still one: modalities round, and tell what they got."""
Voxels: TypeAlias = npt.NDArray[np.int16] | npt.NDArray[np.float32]
"""(K, J, I) in modality units."""


class Planes(Protocol):
    """Where the slices of a volume are put while it is made."""

    def put(self, k: int, plane: npt.NDArray[np.int16]) -> None:
        """Take a slice, (J, I), once or again; several threads may at once."""

    def get(self, k: int) -> npt.NDArray[np.int16]:
        """Return a slice as it was taken, (J, I)."""

    def together(self) -> npt.NDArray[np.int16]:
        """Return all, (K, J, I); then none is taken any more."""


class PlanesInMemory:
    """Planes of one array."""

    def __init__(self, shape_kji: tuple[int, int, int]) -> None:
        self._array = np.empty(shape_kji, dtype=np.int16)

    def put(self, k: int, plane: npt.NDArray[np.int16]) -> None:
        """Take a slice, (J, I)."""
        self._array[k] = plane

    def get(self, k: int) -> npt.NDArray[np.int16]:
        """Return a slice, (J, I)."""
        plane: npt.NDArray[np.int16] = self._array[k]
        return plane

    def together(self) -> npt.NDArray[np.int16]:
        """Return all, (K, J, I)."""
        return self._array


MakePlanes: TypeAlias = Callable[[tuple[int, int, int]], Planes]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceVolume:
    """A series as a volume.

    Attributes
    ----------
    grid
        Where it lies, with the image of each slice.
    voxels
        (K, J, I) in modality units (Hounsfield for CT): int16 where that is exact, else float32.
        Padding has the lowest value of what is no padding.
    facts
        What the series says of patient and acquisition.
    series_instance_uid
        The series.
    part
        What tells it from other volumes of its series, in words; empty where it is the only one.
    headers
        The data sets that it is made of, each once, in the order of their first slice: by k where
        each has one frame. Empty where only voxels are needed, as in a runner.
    warnings
        What a reader should know, one sentence each.
    beside
        Further inputs of a model, each (K, J, I) on this grid; None for one that is missing.
    """

    grid: Grid
    voxels: Voxels
    facts: Facts
    series_instance_uid: str
    part: str = ""
    headers: tuple[Dataset, ...] = ()
    warnings: tuple[str, ...] = ()
    beside: tuple[npt.NDArray[np.float32] | None, ...] = ()

    @property
    def volume(self) -> highdicom.Volume:
        """The same as highdicom has it: index order (k, j, i), LPS millimetres."""
        import highdicom  # 0.4 s that only those pay who want it

        return highdicom.Volume(
            array=self.voxels,
            affine=self.grid.index_to_lps,
            coordinate_system="PATIENT",
            frame_of_reference_uid=self.grid.frame_of_reference_uid,
        )


def volume_of(
    datasets: Sequence[Dataset], intake: Intake = PLAIN, planes: MakePlanes | None = None
) -> SourceVolume:
    """Return the one volume of a series that a model takes.

    Parameters
    ----------
    datasets
        As of `volumes_of`.
    intake
        Which volume, and in which form.
    planes
        Makes room for the voxels, given their shape. Then pixel data are taken out of the data
        sets as soon as they are decoded.

    Raises
    ------
    InputError
        As from `volumes_of`, or they make several volumes and it is not said which is wanted, or
        the wanted one is not there or has fewer than three slices.
    """
    with values_checked_here():
        return _one_volume(datasets, intake, planes)


def _one_volume(
    datasets: Sequence[Dataset], intake: Intake, planes: MakePlanes | None
) -> SourceVolume:
    parts = _parts(datasets)
    series = text(datasets[0], "SeriesInstanceUID")
    part = _wanted(parts, intake.part, series)
    count = len(part.frames)
    if count < MIN_SLICES:
        raise InputError(
            f"Series {series} has only {'one slice' if count == 1 else f'{count} slices'}, and a "
            f"volume takes at least {MIN_SLICES}. Send the whole series.",
            subject=series,
        )
    return _volume(part, series, intake, planes)


def volumes_of(datasets: Sequence[Dataset], intake: Intake = PLAIN) -> tuple[SourceVolume, ...]:
    """Return the volumes that the images of one series make.

    Parameters
    ----------
    datasets
        Greyscale slices with pixel data, in any order: images of one frame, or multi-frame objects
        that say of each where it lies (`frame.ENHANCED`). They are told apart by stack, kind of
        image, time, echo, b-value and direction, heart phase and acquisition.
    intake
        In which form; `part` does not matter.

    Raises
    ------
    InputError
        They make no volumes: a gap, a position twice, several orientations, spacings or frames of
        reference, colour, frames that are no slices, a missing or absurd attribute, pixel data that
        can't be decoded. The sentence names the object or the position.
    """
    parts = _parts(datasets)
    series = text(datasets[0], "SeriesInstanceUID")
    return tuple(_volume(part, series, intake) for part in parts)


def _wanted(parts: Sequence[Part], name: str, series: str) -> Part:
    """Return the part that has a name, or the only one where none is wanted.

    Where something else parts them, as their kind, a name may be what all frames of one say.
    """
    if len(parts) == 1 and not name:
        return parts[0]
    words = words_of(name)
    fits = [part for part in parts if words <= words_of(part.label)]
    fits = fits or [part for part in parts if words <= part.words]
    if name and len(fits) == 1:
        return fits[0]
    told = "; ".join(part.label or "a single one" for part in parts[:6])
    told += "; …" if len(parts) > 6 else ""
    if not name:
        raise InputError(
            f"Series {series} is no single volume but {len(parts)}: {told}. A model takes one: its "
            "manifest can name it, or send the wanted one as a series of its own.",
            subject=series,
        )
    raise InputError(
        f'Series {series} has {len(fits) or "no"} volumes "{name}", and the model takes one. Its '
        f"volumes are: {told}. Choose another series.",
        subject=series,
    )


def _parts(datasets: Sequence[Dataset]) -> tuple[Part, ...]:
    if not datasets:
        raise InputError("There is no image in the series.")
    for dataset in datasets:
        check_greyscale(dataset)
    _check_concatenations(datasets)
    frames = [frame for dataset in datasets for frame in frames_of(dataset)]
    slices = [frame for frame in frames if not _is_projection(frame)]
    if not slices:
        series = text(datasets[0], "SeriesInstanceUID")
        raise InputError(
            f"Series {series} has only images that were made of the slices of a tomosynthesis, and "
            "no slices. Send these.",
            subject=series,
        )
    return split(slices)


def _is_projection(frame: Frame) -> bool:
    """Whether it was made of the slices of a tomosynthesis; where it lies says nothing then."""
    return "GENERATED_2D" in text(frame.header, "ImageType").upper().split("\\")


def _check_concatenations(datasets: Sequence[Dataset]) -> None:
    """Refuse an object that was sent in parts of which some are not here (PS3.3 C.7.6.16.2.2.4)."""
    here: dict[str, set[int]] = {}
    for dataset in datasets:
        if uid := text(dataset, "ConcatenationUID"):
            here.setdefault(uid, set()).add(whole(dataset, "InConcatenationNumber", 1))
    for dataset in datasets:
        found = here.get(text(dataset, "ConcatenationUID"))
        total = whole(dataset, "InConcatenationTotalNumber", 0)
        if found is not None and len(found) < total:
            raise InputError(
                f"{name_of(dataset)} is part of a concatenation of {total} objects, and "
                f"{len(found)} of them are here. Send the series again.",
                subject=text(dataset, "SOPInstanceUID"),
            )


def _check_one_kind(part: Part, series: str) -> None:
    """Refuse slices that lie side by side and are of different kinds."""
    for keyword in _ONE_KIND:
        found = {text(frame.header, keyword) for frame in part.frames}
        values = sorted({"" if value.upper() in _USUAL_UNITS else value for value in found})
        if len(values) > 1:
            told = " and ".join(value or "none" for value in values[:3])
            raise InputError(
                f"Series {series} has slices side by side whose {keyword} differs ({told}): they "
                "are no one volume. Have each kind sent as a series of its own.",
                subject=series,
            )


def _check_one_echo(part: Part, series: str) -> None:
    """Refuse slices of several echoes, each at places of its own, which so are not parted."""
    times = [time for frame in part.frames for time in echo_time(frame)]
    echoes = sorted(time for time in times if isinstance(time, float))
    if echoes and echoes[-1] > _ONE_ECHO * echoes[0]:
        raise InputError(
            f"Series {series} has slices side by side with echo times from {echoes[0]:g} to "
            f"{echoes[-1]:g} ms: they are no one volume. Have each echo sent as a series of its "
            "own.",
            subject=series,
        )


def _volume(
    part: Part, series: str, intake: Intake, planes: MakePlanes | None = None
) -> SourceVolume:
    _check_one_kind(part, series)
    placed = stack([frame.place for frame in part.frames], series, intake.uneven_mm)
    _check_one_echo(part, series)
    frames = [part.frames[index] for index in placed.order]
    sources = {id(frame.source): frame.source for frame in frames}
    uses = Counter(id(frame.source) for frame in frames)
    stored = {key: stored_pixels(each) for key, each in sources.items()}
    pixels = {key: _Pixels(each, uses[key]) for key, each in stored.items()}
    noted = [said for each in stored.values() for said in each.noted()]
    del stored
    if planes is not None:
        for source in sources.values():
            source.pop("PixelData", None)
    slices = [
        _Slice(
            k=k,
            pixels=pixels[id(frame.source)],
            index=frame.index,
            transform=modality_transform(frame.header),
        )
        for k, frame in enumerate(frames)
    ]
    scale = check_one_scale([frame.header for frame in frames], series)
    headers = tuple(sources.values())
    # No memory is taken on the word of headers alone: one slice has to hold what it announces.
    slices[0].pixels.announced(slices[0].index)
    voxels = _voxels(slices, (planes or PlanesInMemory)(placed.grid.shape_kji))
    if intake.suv_body_weight:
        voxels = voxels * np.float32(suv_body_weight_factor([frame.header for frame in frames]))
    return SourceVolume(
        grid=placed.grid,
        voxels=voxels,
        facts=facts_of(headers[0]),
        series_instance_uid=series,
        part=part.label,
        headers=headers,
        warnings=(
            *placed.warnings,
            *scale,
            *noted_of_part(headers[0]),
            *_incomplete(part),
            *_shortened(noted),
        ),
    )


def _incomplete(part: Part) -> tuple[str, ...]:
    """Note PET that lacks slices at its ends, where no gap shows it.

    Number of Slices is that of one volume, of each time or gate (PS3.3 C.8.9.4.1.9).
    """
    headers = [frame.header for frame in part.frames]
    if text(headers[0], "Modality") != "PT":
        return ()
    announced = max(whole(header, "NumberOfSlices", 0) for header in headers)
    if len(headers) >= announced:
        return ()
    told = (
        f"The series says that it has {announced} slices, and {len(headers)} are here: what the "
        "others show was not looked at."
    )
    return (told,)


def _shortened(noted: Sequence[str]) -> tuple[str, ...]:
    """Return what is said of one object after the other as one sentence: of the first."""
    if len(noted) < 2:
        return tuple(noted)
    return (f"{noted[0]} The same holds of {len(noted) - 1} more objects of the series.",)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Slice:
    """What makes one slice of voxels."""

    k: int
    pixels: _Pixels
    index: int
    transform: ModalityTransform


@dataclass(slots=True, eq=False)
class _Pixels:
    """Those of an object, until the last of its frames that are wanted was decoded."""

    stored: StoredPixels | None
    left: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def announced(self, index: int) -> None:
        """Raise InputError unless a frame can be decoded and has the size that its header says."""
        assert self.stored is not None
        self.stored.frame(index)

    def frame_and_words(self, index: int) -> tuple[Samples, Samples]:
        """Return a frame, as that of `StoredPixels` does; each wanted one is asked for once."""
        assert self.stored is not None
        out = self.stored.frame_and_words(index)
        with self.lock:
            self.left -= 1
            if not self.left:
                self.stored = None
        return out


def _voxels(slices: Sequence[_Slice], planes: Planes) -> Voxels:
    """Each slice by its own rescale; int16 where every slice fits, else float32."""
    info = np.iinfo(np.int16)
    too_large: dict[int, npt.NDArray[np.float32]] = {}
    paddings: dict[int, npt.NDArray[np.bool_]] = {}

    def decode(each: _Slice) -> float:
        """Fill one slice; return the lowest of its values that are no padding."""
        stored, words = each.pixels.frame_and_words(each.index)
        sooner = each.transform.whole_numbers(stored, words)
        if sooner is not None:
            planes.put(each.k, sooner[0])
            return sooner[1]
        values, padding = each.transform.values(stored, words)
        kept = values
        if padding is not None:
            paddings[each.k] = padding
            kept = values[~padding]
        low, high = (float(kept.min()), float(kept.max())) if kept.size else (np.inf, -np.inf)
        if values.dtype == np.int32 and low >= info.min and high <= info.max:
            planes.put(each.k, values.astype(np.int16))
        else:
            too_large[each.k] = values.astype(np.float32)
        return low

    lowest = min(in_parallel(decode, slices))
    if not np.isfinite(lowest):
        raise InputError(
            f"{slices[0].transform.name} and all other slices of its series are nothing but "
            "padding. Have the modality send them again.",
            subject=slices[0].transform.subject,
        )
    if too_large:
        out = planes.together().astype(np.float32)
        for k, values in too_large.items():
            out[k] = values
        for k, padding in paddings.items():
            out[k][padding] = lowest
        return out
    for k, padding in paddings.items():
        plane = planes.get(k).copy()
        plane[padding] = lowest
        planes.put(k, plane)
    return planes.together()
