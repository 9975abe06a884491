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
from dicomai.results.provenance import code_item
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
PROCEDURE_REPORTED: Final = Code("121058", "DCM", "Procedure reported")


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


def leave_out_procedures_of_others(report: Dataset) -> None:
    """Take from a report each procedure of an order that its header names no more."""
    order = Dataset()
    for keyword, source in (
        ("ProcedureCodeSequence", "ProcedureCodeSequence"),
        (REQUEST, "ReferencedRequestSequence"),
    ):
        if source in report:
            setattr(order, keyword, report[source].value)
    known = {*procedures(order, ""), *OF_A_MODALITY.values()}
    content = report.get("ContentSequence") or ()
    said = [each for each in content if _concept(each) == PROCEDURE_REPORTED.value]
    wrong = [each for each in said if not known & set(_codes(each, "ConceptCodeSequence"))]
    if not wrong:
        return
    if len(wrong) == len(said):
        wrong.pop(0).ConceptCodeSequence = [code_item(IMAGING)]
    report.ContentSequence = [each for each in content if not any(each is one for one in wrong)]


def _concept(item: Dataset) -> str:
    return "".join(code.value for code in _codes(item, "ConceptNameCodeSequence"))


def _codes(holder: Dataset, keyword: str) -> Iterator[Code]:
    for item in holder.get(keyword) or ():
        value = item.get("CodeValue") or item.get("LongCodeValue")
        if value and item.get("CodingSchemeDesignator") and item.get("CodeMeaning"):
            yield Code(str(value), str(item.CodingSchemeDesignator), str(item.CodeMeaning))
