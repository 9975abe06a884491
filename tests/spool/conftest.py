"""A spool, and associations in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dicomai.dicom.dates import Instant
from dicomai.spool import entries
from dicomai.spool.entries import Writer


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
def associate(spool: Path) -> Callable[..., Writer]:
    """Open an association in the spool."""

    def make(started_at: int = 1_700_000_000_000_000, **facts: Any) -> Writer:
        usual = {
            "calling_ae": "CT1",
            "called_ae": "DICOMAI",
            "address": "127.0.0.1",
            "node": "ct1",
        }
        return entries.opened(spool, started_at=Instant(started_at), **(usual | facts))

    return make
