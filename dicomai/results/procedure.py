"""The imaging procedure whose images were looked at: Procedure Reported (PS3.16 TID 1500, CID 100).

Not what was done to the images afterwards. What the images say of their procedure counts; where
they say nothing that is coded, their modality does.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

from pydicom.dataset import Dataset

from dicomai.dicom.codes import Code
from dicomai.results.source import REQUEST

# CID 100 has grown, and validators lag behind: these are in every edition of it, and so is the
# imaging procedure that stands for all others.
OF_A_MODALITY: Final = MappingProxyType(
    {
        "CT": Code("25045-6", "LN", "CT unspecified body region"),
        "MR": Code("25056-3", "LN", "MRI unspecified body region"),
    }
)
IMAGING: Final = Code("363679005", "SCT", "Imaging procedure")


def procedures(study: Dataset, modality: str) -> tuple[Code, ...]:
    """Return the procedures of a study, each once: what was performed, else what was requested.

    Parameters
    ----------
    study
        Its attributes as results carry them.
    modality
        Of the source images.
    """
    performed = tuple(dict.fromkeys(_codes(study, "ProcedureCodeSequence")))
    requested = tuple(
        dict.fromkeys(
            code
            for request in study.get(REQUEST) or ()
            for code in _codes(request, "RequestedProcedureCodeSequence")
        )
    )
    return performed or requested or (OF_A_MODALITY.get(modality, IMAGING),)


def _codes(holder: Dataset, keyword: str) -> Iterator[Code]:
    for item in holder.get(keyword) or ():
        value = item.get("CodeValue") or item.get("LongCodeValue")
        if value and item.get("CodingSchemeDesignator") and item.get("CodeMeaning"):
            yield Code(str(value), str(item.CodingSchemeDesignator), str(item.CodeMeaning))
