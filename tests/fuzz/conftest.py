"""The folder of the fuzz targets, which a script of this folder uses too."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# For `fuzz_targets` and `fuzz_material`.
sys.path.insert(0, str(Path(__file__).parent))

# Examples are multiplied by this: 1 is what the suite has time for.
os.environ.setdefault("DICOMAI_FUZZ", "1")
