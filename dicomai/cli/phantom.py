"""`dicomai phantom`: studies of known truth, as DICOM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from dicomai.cli.terminal import say

app = typer.Typer(help="Make studies of known truth, as DICOM.", no_args_is_help=True)

OutArgument: TypeAlias = Annotated[
    Path, typer.Argument(metavar="OUT", help="The folder; made if it is not there.")
]
SeedOption: TypeAlias = Annotated[
    int, typer.Option("--seed", min=0, help="The same number makes the same patient.")
]


@app.command("ct")
def ct(out: OutArgument, seed: SeedOption = 1) -> None:
    """Write a chest CT: body, lungs, vessels, nodules, noise; and truth.json beside it."""
    from dicomai.phantom.ct import write_ct

    written = write_ct(out, seed)
    say(
        f"{len(written.files)} slices in {out}, with {_nodules(len(written.phantom.nodules))}; "
        f"what is where says {written.truth}.\nStudy {written.study_instance_uid}"
    )


@app.command("xray")
def xray(out: OutArgument, seed: SeedOption = 1) -> None:
    """Write a chest X-ray, projected from the CT's body; and truth-xray.json beside it."""
    from dicomai.phantom.xray import write_xray

    written = write_xray(out, seed)
    say(
        f"{written.file}, with {_nodules(len(written.phantom.nodules))}; what is where says "
        f"{written.truth}.\nStudy {written.study_instance_uid}"
    )


def _nodules(count: int) -> str:
    return "no nodule" if count == 0 else "1 nodule" if count == 1 else f"{count} nodules"
