"""Synthetic chests with known truth, as DICOM: what tests, the demo and training hold on to.

Imports nothing else of this package; geometry is written from the standard's formula.
"""

from dicomai.phantom.chest import ChestPhantom, Nodule, Truth
from dicomai.phantom.ct import Scan, WrittenCt, chest_scan, scanned, write_ct
from dicomai.phantom.shell import Shell
from dicomai.phantom.xray import Exposure, WrittenXray, chest_exposure, write_xray

__all__ = [
    "ChestPhantom",
    "Exposure",
    "Nodule",
    "Scan",
    "Shell",
    "Truth",
    "WrittenCt",
    "WrittenXray",
    "chest_exposure",
    "chest_scan",
    "scanned",
    "write_ct",
    "write_xray",
]
