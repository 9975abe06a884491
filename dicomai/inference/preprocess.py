"""From modality units on the source's grid to what the network takes, as the manifest says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dicomai.imaging.image import SourceImagePixels
from dicomai.imaging.resample import Resampling
from dicomai.imaging.volume import SourceVolume
from dicomai.imaging.weights import axis_weights
from dicomai.inference import on_device
from dicomai.models.steps import Infer, Preprocess

_Values = TypeVar("_Values", npt.NDArray[np.float32], Tensor)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedVolume:
    """What the network sees of a volume, and the way back.

    Attributes
    ----------
    inputs : (C, K, J, I) float32
        A channel on the model's grid for each input; on the device that was asked for.
    wanted : (K, J, I) bool or None
        Voxels within `infer.only_where`.
    """

    inputs: Tensor
    resampling: Resampling
    wanted: npt.NDArray[np.bool_] | None


def prepare_volume(
    source: SourceVolume,
    way: Resampling,
    preprocess: Preprocess,
    infer: Infer,
    device: torch.device | None,
) -> PreparedVolume:
    """Turn, resample, clip and scale a volume, and what lies beside it.

    The channel of an input that is missing is the lowest value everywhere. A device does it itself,
    where it `can_prepare`; None is the host.
    """
    if device is None:
        return _prepared_on_host(source, way, preprocess, infer)
    assert preprocess.clip is not None
    shape = (1 + len(source.beside), *way.model.shape_kji)
    inputs = torch.full(shape, preprocess.scale_to[0], dtype=torch.float32, device=device)
    wanted = None
    for channel, each in zip(inputs, (source.voxels, *source.beside), strict=True):
        if each is None:
            continue
        values = on_device.to_model(way, each, device)
        if each is source.voxels and infer.only_where is not None:
            low, high = infer.only_where.between
            wanted = ((values >= low) & (values <= high)).cpu().numpy()
        low, high = preprocess.clip
        channel[:] = _stretched(values.clamp_(low, high), low, high, preprocess.scale_to)
    return PreparedVolume(inputs=inputs, resampling=way, wanted=wanted)


def can_prepare(way: Resampling, preprocess: Preprocess) -> bool:
    """Tell whether a device with memory of its own can prepare a volume itself."""
    return on_device.takes(way) and preprocess.clip is not None


def _prepared_on_host(
    source: SourceVolume, way: Resampling, preprocess: Preprocess, infer: Infer
) -> PreparedVolume:
    inputs = np.empty((1 + len(source.beside), *way.model.shape_kji), dtype=np.float32)
    values = way.to_model(source.voxels, out=inputs[0])
    wanted = None
    if infer.only_where is not None:
        low, high = infer.only_where.between
        wanted = (values >= low) & (values <= high)
    missing = np.float32(preprocess.scale_to[0])
    scaled(values, preprocess, out=values)
    for channel, each in zip(inputs[1:], source.beside, strict=True):
        if each is None:
            channel[:] = missing
        else:
            scaled(way.to_model(each, out=channel), preprocess, out=channel)
    return PreparedVolume(inputs=torch.from_numpy(inputs), resampling=way, wanted=wanted)


def prepare_image(source: SourceImagePixels, preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """Return an image as the network takes it, (1, J, I) float32; (3, J, I) in colour.

    It is scaled in proportion until it fits `shape_ji`, and padded evenly with the lowest value.
    """
    assert preprocess.shape_ji is not None
    pixels = scaled(source.pixels, preprocess)
    height, width = pixels.shape[:2]
    between_rows, between_columns = source.plane.pixel_ji
    # Pixels are square for the network, whatever they are on the detector.
    tall, wide = height * between_rows, width * between_columns
    per_pixel = max(tall / preprocess.shape_ji[0], wide / preprocess.shape_ji[1])
    new_height = min(preprocess.shape_ji[0], max(1, round(tall / per_pixel)))
    new_width = min(preprocess.shape_ji[1], max(1, round(wide / per_pixel)))
    rows = axis_weights(height, new_height, height / new_height)
    columns = axis_weights(width, new_width, width / new_width).T
    planes = [pixels] if pixels.ndim == 2 else [pixels[..., each] for each in range(3)]
    out = np.full((len(planes), *preprocess.shape_ji), preprocess.scale_to[0], dtype=np.float32)
    top, left = (out.shape[1] - new_height) // 2, (out.shape[2] - new_width) // 2
    for channel, plane in zip(out, planes, strict=True):
        channel[top : top + new_height, left : left + new_width] = rows @ plane @ columns
    return out


def scaled(
    values: npt.NDArray[np.float32],
    preprocess: Preprocess,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Return values clipped, and mapped linearly from the clipped range to `scale_to`.

    They are put into `out`, which may be the values themselves; None: into a new array.
    """
    if preprocess.clip is not None:
        low, high = preprocess.clip
    else:
        assert preprocess.clip_percentiles is not None
        found = np.percentile(values, preprocess.clip_percentiles)
        low, high = float(found[0]), float(found[1])
    if high <= low:  # one value everywhere
        out = np.empty_like(values) if out is None else out
        out[:] = preprocess.scale_to[0]
        return out
    out = _stretched(np.clip(values, low, high, out=out), low, high, preprocess.scale_to)
    return np.asarray(out, dtype=np.float32)


def _stretched(values: _Values, low: float, high: float, to: tuple[float, float]) -> _Values:
    """Map values linearly from one range to another, in their place."""
    bottom, top = to
    values -= low
    values *= (top - bottom) / (high - low)
    values += bottom
    return values
