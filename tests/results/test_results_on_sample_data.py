"""Images of real scanners in every form of a result: others find no fault that the images lack.

A few series here; `python tests/results/every_series.py` takes all of them, PixelMed too.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import every_series

PROGRAMS = (
    *("dciodvfy", "dcentvfy", "dcmdump", "dsrdump"),
    *("tid1500reader", "segimage2itkimage"),
)


@pytest.mark.parametrize(
    "name",
    [
        "modalities/made-double-oblique",
        "modalities/mr-enhanced-siemens-xa10",
        "modalities/dx",
        "modalities/photo",
        "odd/files/explicit_VR-UN.dcm",
    ],
)
def test_others_find_no_fault_that_the_images_lack(
    name: str, sample_data: Path, peer: Callable[[str], str], tmp_path: Path
) -> None:
    for program in PROGRAMS:
        peer(program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydicom, about values that break their rules
        title, source = next(every_series.sources(sample_data / name))
        said = every_series.one(title, source, tmp_path / "results", {})
    assert (said.refused, said.complaints) == ("", ())
