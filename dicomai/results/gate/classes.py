"""SOP classes of results (PS3.4 B.5)."""

from __future__ import annotations

from typing import Final

SEG: Final = "1.2.840.10008.5.1.4.1.1.66.4"
LABELMAP: Final = "1.2.840.10008.5.1.4.1.1.66.7"
PM: Final = "1.2.840.10008.5.1.4.1.1.30"
RTSTRUCT: Final = "1.2.840.10008.5.1.4.1.1.481.3"
PDF: Final = "1.2.840.10008.5.1.4.1.1.104.1"
ENHANCED_SR: Final = "1.2.840.10008.5.1.4.1.1.88.22"
TEXT_SR: Final = "1.2.840.10008.5.1.4.1.1.88.11"
SR: Final = "1.2.840.10008.5.1.4.1.1.88.34"
SC: Final = "1.2.840.10008.5.1.4.1.1.7"
KO: Final = "1.2.840.10008.5.1.4.1.1.88.59"
PR: Final = "1.2.840.10008.5.1.4.1.1.11.1"
SEVERAL: Final = frozenset({SC, PR, LABELMAP, PM})
"""Of these an analysis may give more than one object."""
