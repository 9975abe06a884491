"""What every table of a manifest is made of."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dicomai.dicom.codes import Code


def _increasing(value: tuple[float, float]) -> tuple[float, float]:
    if not value[0] < value[1]:
        raise ValueError("the first number must be below the second")
    return value


def _not_negative(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] < 0:
        raise ValueError("a range of ages or distances starts at 0 or above")
    return value


def _bare(value: str) -> str:
    if not value or value != value.strip():
        raise ValueError(f"{value!r} is no value of DICOM: write it without blanks around it")
    return value


def _not_empty(value: tuple[object, ...]) -> tuple[object, ...]:
    if not value:
        raise ValueError("is empty; give at least one")
    return value


def _once(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) != len(value):
        raise ValueError("a name stands twice; remove one")
    return value


_SCHEMES: Final = MappingProxyType(
    {"SNOMED": "SCT", "SNOMEDCT": "SCT", "SNOMED-CT": "SCT", "SNOMED CT": "SCT", "LOINC": "LN"}
)
"""Names of coding schemes to their designators, PS3.16 Table 8-1, by which viewers know them."""


def _designator(value: str) -> str:
    if known := _SCHEMES.get(value.upper()):
        raise ValueError(f'DICOM calls this scheme "{known}", not {value!r}')
    return value


Range: TypeAlias = Annotated[tuple[float, float], AfterValidator(_increasing)]
Extent: TypeAlias = Annotated[Range, AfterValidator(_not_negative)]
"""A range of what is never negative."""
Listed: TypeAlias = Annotated[str, AfterValidator(_bare)]
"""A value as images bear it, compared whole."""
NOT_EMPTY: Final = AfterValidator(_not_empty)
"""Refuses an empty list; pydantic's own bound counts an entry with an error as none."""
ONCE: Final = AfterValidator(_once)
"""Refuses a list that names something twice."""
Probability: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Sentence: TypeAlias = Annotated[str, Field(min_length=1, max_length=1024)]
Byte: TypeAlias = Annotated[int, Field(ge=0, le=255)]


class Table(BaseModel):
    """A table of a manifest; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class CodeTable(Table):
    """A coded concept: value, scheme, meaning."""

    value: Annotated[str, Field(min_length=1, max_length=16)]
    scheme: Annotated[str, Field(min_length=1, max_length=16), AfterValidator(_designator)]
    meaning: Annotated[str, Field(min_length=1, max_length=64)]

    @property
    def code(self) -> Code:
        """The concept as the rest of the engine knows it."""
        return Code(self.value, self.scheme, self.meaning)
