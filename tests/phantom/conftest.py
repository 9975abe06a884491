"""One small patient, written once, for all tests of phantoms."""

from __future__ import annotations

import pytest

from dicomai.phantom import ChestPhantom, Shell, WrittenCt, chest_scan, write_ct

DIAMETERS_MM = (14.0, 9.0)


@pytest.fixture(scope="session")
def patient() -> ChestPhantom:
    """A patient with two nodules."""
    return ChestPhantom(5, nodule_diameters_mm=DIAMETERS_MM)


@pytest.fixture(scope="session")
def small_ct(patient: ChestPhantom, tmp_path_factory: pytest.TempPathFactory) -> WrittenCt:
    """That patient as a coarse CT without noise."""
    scan = chest_scan(patient, matrix=128, slice_spacing_mm=4.0, noise_hu=0.0)
    shell = Shell(uid_seed="small")
    return write_ct(tmp_path_factory.mktemp("ct"), 5, phantom=patient, scan=scan, shell=shell)
