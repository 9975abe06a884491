"""The card of a package: how it was made, what it reaches on unseen phantoms, what it is not."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from dicomai.models.manifest import Manifest
from dicomai.training.evaluation import (
    NEAR_MM,
    LungScore,
    NoduleScore,
    area_interval,
    area_under_curve,
)

_WIDTH: Final = 100

_NO_PATIENT: Final = (
    "No image of a patient was used, so it holds nothing that could be told of one."
)
_SHARES: Final = "| what | measured (95 % interval by Wilson) |\n| --- | --- |"
_LIMITS: Final = (
    "Phantoms lack most of what real chests show: fissures, lymph nodes, pleural effusion, "
    "consolidation, fibrosis, atelectasis, devices, motion, metal, children, and every anatomy "
    "that nobody thought of. Figures on phantoms say nothing about patients."
)


def lung_figures(scores: Sequence[LungScore]) -> str:
    """Return the table of what was measured, Markdown."""
    rows = ["| lung | Dice, mean | Dice, least | volume error, mean | largest |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for side in ("right", "left"):
        own = [each for each in scores if each.side == side]
        dices = np.array([each.dice for each in own])
        errors = np.array([each.volume_error for each in own])
        rows.append(
            f"| {side} | {dices.mean():.3f} | {dices.min():.3f} | {errors.mean() * 100:+.1f} % | "
            f"{np.abs(errors).max() * 100:.1f} % |"
        )
    return "\n".join(rows)


def nodule_figures(scores: Sequence[NoduleScore]) -> str:
    """Return the table of what was measured, Markdown."""
    errors = np.array([error for each in scores for error in each.errors_mm])
    found = errors[errors <= NEAR_MM]
    mean, largest = "none found", "none found"
    if len(found):
        mean, largest = f"{found.mean():.2f} mm", f"{found.max():.2f} mm"
    false = np.array([each.false_findings for each in scores])
    return "\n".join(
        [
            _SHARES,
            f"| nodules of 8 to 25 mm found within {NEAR_MM:g} mm | {_share(errors <= NEAR_MM)} |",
            f"| distance of the centres of those found, mean | {mean} |",
            f"| distance of the centres of those found, largest | {largest} |",
            f"| false findings per study, mean | {false.mean():.2f} |",
            f"| studies with more than one false finding | {_share(false > 1)} |",
        ]
    )


def xray_figures(
    positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64], threshold: float
) -> str:
    """Return the table of what was measured, Markdown; each patient has one of both."""
    interval = area_interval(positive, negative)
    area = f"{area_under_curve(positive, negative):.3f}"
    if interval is not None:
        area += f" ({interval[0]:.2f} to {interval[1]:.2f})"
    sensitivity, specificity = _share(positive >= threshold), _share(negative < threshold)
    return "\n".join(
        [
            _SHARES,
            f"| area under the ROC curve, interval by Obuchowski over patients | {area} |",
            f"| sensitivity at {threshold:g}, nodules of 15 to 30 mm | {sensitivity} |",
            f"| specificity at {threshold:g} | {specificity} |",
        ]
    )


def _share(hits: npt.NDArray[np.bool_]) -> str:
    """Return how many of how many, and between which shares the truth may well lie."""
    count, total = int(hits.sum()), len(hits)
    if not total:
        return "0 of 0"
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return f"{count} of {total} ({interval.low:.2f} to {interval.high:.2f})"


def card(
    manifest: Manifest,
    *,
    drawn: str,
    made: str,
    train_command: str,
    measure_command: str,
    phantoms: int,
    shown: str,
    figures: str,
    remark: str,
) -> str:
    """Return a whole CARD.md.

    Parameters
    ----------
    drawn
        What differs from sample to sample of its training, and what does not.
    made
        How it was trained, in a sentence or two.
    shown
        As which images, and how, the phantoms were measured.
    figures
        A table, from one of the functions above.
    remark
        What a reader should know beyond the figures.
    """
    limits = manifest.limits
    parts = [
        f"# {manifest.name} {manifest.version}",
        _filled(f"Looks for: {manifest.sought}."),
        _filled(f"**Intended use.** {manifest.intended_use}"),
        _filled(f"**Not for.** {manifest.not_for}"),
        "## How it was made",
        _filled(f"Synthetic phantoms only (`dicomai/phantom`): {drawn} {_NO_PATIENT}"),
        _filled(made),
        f"```\n{train_command}\n```",
        "## What it reaches",
        _filled(
            f"On {phantoms} phantoms that training never saw (their seeds begin beyond those of "
            f"training), {shown}:"
        ),
        figures,
        f"```\n{measure_command}\n```",
        "## Limits",
        _filled(_LIMITS),
        _filled(remark),
        _filled(
            f"The engine refuses what lies outside the limits of its manifest: modality "
            f"{' or '.join(limits.modality)}"
            + (
                f", slices {limits.slice_spacing_mm[0]:g} to {limits.slice_spacing_mm[1]:g} mm "
                f"apart, pixels of {limits.pixel_spacing_mm[0]:g} to "
                f"{limits.pixel_spacing_mm[1]:g} mm."
                if limits.slice_spacing_mm and limits.pixel_spacing_mm
                else "."
            )
        ),
        "## Licence",
        f"{manifest.licence}, weights included.",
    ]
    return "\n\n".join(parts) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
