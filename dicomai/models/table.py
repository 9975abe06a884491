"""What every table of a manifest is made of."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dicomai.dicom.codes import Code


def _increasing(value: tuple[float, float]) -> tuple[float, float]:
    if not value[0] < value[1]:
        raise ValueError("the first number must be below the second")
    return value


Range: TypeAlias = Annotated[tuple[float, float], AfterValidator(_increasing)]
Probability: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Sentence: TypeAlias = Annotated[str, Field(min_length=1, max_length=1024)]
Byte: TypeAlias = Annotated[int, Field(ge=0, le=255)]


class Table(BaseModel):
    """A table of a manifest; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class CodeTable(Table):
    """A coded concept: value, scheme, meaning."""

    value: Annotated[str, Field(min_length=1, max_length=16)]
    scheme: Annotated[str, Field(min_length=1, max_length=16)]
    meaning: Annotated[str, Field(min_length=1, max_length=64)]

    @property
    def code(self) -> Code:
        """The concept as the rest of the engine knows it."""
        return Code(self.value, self.scheme, self.meaning)
