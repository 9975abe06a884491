"""The last look at a result before it counts: bytes against findings and source images.

Written from the standard and shares no code with the encoders, nor their libraries: what one of
them gets wrong, the other does not repeat. It reads the very bytes that would be sent.
"""

from __future__ import annotations

from dicomai.results.gate.check import check
from dicomai.results.gate.dciodvfy import check_with_dciodvfy
from dicomai.results.gate.error import GateError, Rule

__all__ = ["GateError", "Rule", "check", "check_with_dciodvfy"]
