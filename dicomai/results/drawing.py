"""Pixels with what was found drawn on them, and a panel that says what one sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

Rgb = tuple[int, int, int]
_BACKGROUND: Final[Rgb] = (16, 18, 22)
_PANEL: Final[Rgb] = (26, 29, 35)
_BRIGHT: Final[Rgb] = (238, 240, 243)
_DIM: Final[Rgb] = (150, 156, 166)
_WARNING: Final[Rgb] = (255, 196, 84)
_PANEL_PX: Final = 344
_MARGIN: Final = 20
_INSET_PX: Final = 228
_LEAST_HEIGHT: Final = 560
_FINE: Final = 2  # contours are drawn at twice the size, so that their edges are smooth
NOT_FOR_DIAGNOSIS: Final = "AI result, not for primary diagnosis"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contour:
    """A mask on the screen: (down, across) bool, as it hangs, before it is enlarged."""

    mask: npt.NDArray[np.bool_]
    rgb: Rgb


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """A circle around something found, in pixels of the screen."""

    x: float
    y: float
    radius: float
    name: str
    rgb: Rgb


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A box around something found, in pixels of the screen."""

    corners: tuple[float, float, float, float]
    name: str
    rgb: Rgb


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of the legend: what, how much, in which colour."""

    label: str
    value: str
    rgb: Rgb | None
    share: float | None = None
    """0 to 1: a probability, drawn as a bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Legend:
    """What stands in the panel."""

    model: str
    entries: tuple[Entry, ...]
    conclusion: str
    place: tuple[str, ...]


def grey(
    pixels: npt.NDArray[np.generic], window: tuple[float, float], size_px: tuple[int, int]
) -> Image.Image:
    """Return pixels at a window (lowest, highest), enlarged to (height, width)."""
    low, high = window
    scaled = (np.asarray(pixels, dtype=np.float32) - low) / max(high - low, 1e-6)
    flat = np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(flat))
    return image.resize((size_px[1], size_px[0]), Image.Resampling.BICUBIC).convert("RGB")


def with_contours(image: Image.Image, contours: Sequence[Contour]) -> Image.Image:
    """Return an image with masks on it: a tint inside, a clear line at the edge."""
    for contour in contours:
        there = _part(contour.mask, image.size)
        if there is None:
            continue
        alpha = _alpha(contour.mask, there, image.size)
        cover = Image.fromarray(alpha).resize(
            (there[2] - there[0], there[3] - there[1]), Image.Resampling.BOX
        )
        image.paste(contour.rgb, there, cover)
    return image


def _part(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return the part of the screen (left, top, right, bottom) on which a mask lies."""
    down, across = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not down.size:
        return None
    edges = []
    for filled, pixels, length in zip((across, down), mask.shape[::-1], size, strict=True):
        scale = length / pixels
        # Another pixel on each side takes part in what is between them.
        edges += [int((filled[0] - 1) * scale) - 1, int((filled[-1] + 2) * scale) + 2]
    left, right, top, bottom = edges
    return max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])


def _alpha(
    mask: npt.NDArray[np.bool_], there: tuple[int, int, int, int], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Return how much a mask covers a part of the screen, at `_FINE` times its size."""
    flat = Image.fromarray(np.ascontiguousarray(mask).astype(np.uint8) * 255)
    left, top, right, bottom = there
    per_x, per_y = flat.width / size[0], flat.height / size[1]
    inside = (
        np.asarray(
            flat.resize(
                ((right - left) * _FINE, (bottom - top) * _FINE),
                Image.Resampling.BILINEAR,
                box=(left * per_x, top * per_y, right * per_x, bottom * per_y),
            )
        )
        > 127
    )
    core = ndimage.binary_erosion(inside, iterations=2 * _FINE, border_value=1)
    return np.where(inside & ~core, 255, np.where(inside, 38, 0)).astype(np.uint8)


def with_marks(image: Image.Image, rings: Sequence[Ring], frames: Sequence[Frame]) -> Image.Image:
    """Return an image with circles and boxes on it, each with its name."""
    if not rings and not frames:
        return image
    cover = Image.new("RGBA", (image.width * _FINE, image.height * _FINE))
    draw = ImageDraw.Draw(cover)
    for ring in rings:
        x, y, r = ring.x * _FINE, ring.y * _FINE, ring.radius * _FINE
        draw.ellipse((x - r, y - r, x + r, y + r), outline=ring.rgb, width=2 * _FINE)
    for frame in frames:
        draw.rectangle(tuple(c * _FINE for c in frame.corners), outline=frame.rgb, width=2 * _FINE)
    cover = cover.resize(image.size, Image.Resampling.BOX)
    image = Image.alpha_composite(image.convert("RGBA"), cover).convert("RGB")
    write = ImageDraw.Draw(image)
    for ring in rings:
        reach = ring.radius * 0.72
        _tag(write, image, (ring.x + reach + 4, ring.y - reach - 18), ring.name, ring.rgb)
    for frame in frames:
        _tag(write, image, (frame.corners[0], frame.corners[1] - 22), frame.name, frame.rgb)
    return image


def _tag(
    draw: ImageDraw.ImageDraw, image: Image.Image, at: tuple[float, float], text: str, rgb: Rgb
) -> None:
    font = typeface(17)
    width = draw.textlength(text, font)
    x = min(max(4.0, at[0]), image.width - width - 4)
    y = min(max(4.0, at[1]), image.height - 24.0)
    draw.text((x, y), text, font=font, fill=rgb, stroke_width=2, stroke_fill=_BACKGROUND)


def with_sides(image: Image.Image, sides: tuple[str, str, str, str]) -> Image.Image:
    """Return an image with the patient's sides at its edges: left, right, top, bottom."""
    draw, font = ImageDraw.Draw(image), typeface(20)
    left, right, top, bottom = sides
    middle_x, middle_y = image.width / 2, image.height / 2
    places = (
        (left, (10.0, middle_y), "lm"),
        (right, (image.width - 10.0, middle_y), "rm"),
        (top, (middle_x, 8.0), "mt"),
        (bottom, (middle_x, image.height - 8.0), "mb"),
    )
    for letter, at, anchor in places:
        draw.text(
            at,
            letter,
            font=font,
            fill=_BRIGHT,
            anchor=anchor,
            stroke_width=2,
            stroke_fill=(0, 0, 0),
        )
    return image


def sheet(image: Image.Image, legend: Legend, inset: Image.Image | None = None) -> Image.Image:
    """Return the finished sheet: the image on the left, what it shows on the right."""
    height = max(image.height, _LEAST_HEIGHT)
    page = Image.new("RGB", (image.width + _PANEL_PX, height), _BACKGROUND)
    page.paste(image, (0, (height - image.height) // 2))
    draw = ImageDraw.Draw(page)
    left = image.width
    draw.rectangle((left, 0, page.width, height), fill=_PANEL)
    x, y = left + _MARGIN, _MARGIN
    inner = _PANEL_PX - 2 * _MARGIN
    y = paragraph(draw, (x, y), legend.model, typeface(19), _BRIGHT, inner)
    y = paragraph(draw, (x, y + 4), NOT_FOR_DIAGNOSIS, typeface(15), _WARNING, inner)
    y = paragraph(draw, (x, y), "UNVERIFIED", typeface(15), _WARNING, inner)
    y += 10
    draw.line((x, y, x + inner, y), fill=(58, 63, 73))
    y += 12
    foot = height - _MARGIN - 20 * len(legend.place)
    room = foot - 12 - (_INSET_PX + 12 if inset is not None else 0)
    y = _entries(draw, (x, y), legend.entries, inner, room)
    if not legend.entries:
        y = paragraph(draw, (x, y), legend.conclusion, typeface(15), _BRIGHT, inner)
    if inset is not None and y < foot - _INSET_PX - 10:
        page.paste(inset.resize((_INSET_PX, _INSET_PX)), (x, foot - _INSET_PX - 14))
    for number, text in enumerate(legend.place):
        draw.text((x, foot + 20 * number), text, font=typeface(14), fill=_DIM)
    return page


def _entries(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    entries: Sequence[Entry],
    inner: int,
    room: int,
) -> int:
    x, y = at
    for shown, entry in enumerate(entries):
        if y + 46 > room and shown < len(entries) - 1:
            draw.text((x, y), f"and {len(entries) - shown} more", font=typeface(15), fill=_DIM)
            return y + 24
        if entry.rgb is not None:
            draw.rounded_rectangle((x, y + 3, x + 13, y + 16), radius=3, fill=entry.rgb)
        indent = 22 if entry.rgb is not None else 0
        y = paragraph(draw, (x + indent, y), entry.label, typeface(16), _BRIGHT, inner - indent)
        y = paragraph(draw, (x + indent, y), entry.value, typeface(15), _DIM, inner - indent)
        if entry.share is not None:
            end = x + indent + (inner - indent)
            draw.rounded_rectangle((x + indent, y + 3, end, y + 9), radius=3, fill=(58, 63, 73))
            reach = x + indent + max(6, round((inner - indent) * entry.share))
            fill = entry.rgb or _BRIGHT
            draw.rounded_rectangle((x + indent, y + 3, reach, y + 9), radius=3, fill=fill)
            y += 12
        y += 9
    return y


def paragraph(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    fill: Rgb,
    width: int,
) -> int:
    """Write a text, broken at spaces; return where the next line begins."""
    x, y = at
    step = round(font.size * 1.32) if isinstance(font, ImageFont.FreeTypeFont) else 14
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and draw.textlength(longer, font) > width:
            draw.text((x, y), line, font=font, fill=fill)
            y, line = y + step, word
        else:
            line = longer
    if line:
        draw.text((x, y), line, font=font, fill=fill)
        y += step
    return y


@cache
def typeface(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of pictures and pages at a size in pixels."""
    return ImageFont.load_default(size)
