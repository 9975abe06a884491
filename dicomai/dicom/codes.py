"""Coded concepts (PS3.3 section 8.8): the triple, and the ones that we use ourselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept: Code Value, Coding Scheme Designator, Code Meaning."""

    value: str
    scheme: str
    meaning: str

    def same_concept(self, other: Code) -> bool:
        """Tell whether both mean the same, whatever their words."""
        return (self.value, self.scheme) == (other.value, other.scheme)


def ucum(unit: str, meaning: str | None = None) -> Code:
    """Return a unit of the Unified Code for Units of Measure."""
    return Code(unit, "UCUM", meaning or unit)


MILLIMETRE: Final = ucum("mm", "millimeter")
MILLILITRE: Final = ucum("mL", "milliliter")
HOUNSFIELD: Final = ucum("[hnsf'U]", "Hounsfield unit")
PERCENT: Final = ucum("%", "percent")

RT: Final = frozenset({"SRT", "SNM3", "99SDM"})
"""Designators of SNOMED RT, which older images have (PS3.16 section 8)."""

OURS: Final = "99DICOMAI"
"""Coding Scheme Designator of what no public scheme has a code for (PS3.16 section 8)."""

RIGHT: Final = Code("24028007", "SCT", "Right")
LEFT: Final = Code("7771000", "SCT", "Left")
