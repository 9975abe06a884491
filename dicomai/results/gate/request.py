"""What a result says of the order behind it: accession number, request, imaging procedure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pydicom.dataset import Dataset

from dicomai.results.gate.elements import readable_items
from dicomai.results.gate.error import refuse

# What breaks its representation can't be handed on, so only what is plain must be there.
_PLAIN: Final = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}")
_ISSUER: Final = ("LocalNamespaceEntityID", "UniversalEntityID", "UniversalEntityIDType")


def check_request(result: Dataset, uid: str, sources: Sequence[Dataset]) -> None:
    """Check that the order of the source images is the order of the result (PS3.3 10.6, C.17.2)."""
    source = sources[0]
    if _issuer(source) != _issuer(result):
        refuse("request", uid, "the issuer of its accession number is not the source images'")
    wanted = readable_items(source, "RequestAttributesSequence")
    if "CurrentRequestedProcedureEvidenceSequence" in result:  # a document
        said = result.get("ReferencedRequestSequence") or ()
        keywords: tuple[str, ...] = ("RequestedProcedureID",)
        for each in said:
            if not _plain(each, "AccessionNumber") and _plain(source, "AccessionNumber"):
                refuse("request", uid, "a request that it names lacks its accession number")
        if _plain(source, "AccessionNumber") and not said:
            refuse("request", uid, "it does not name the request with its accession number")
    else:
        said = result.get("RequestAttributesSequence") or ()
        keywords = ("RequestedProcedureID", "ScheduledProcedureStepID")
    for keyword in keywords:
        missing = {_plain(each, keyword) for each in wanted} - {
            _plain(each, keyword) for each in said
        }
        if missing - {""}:
            refuse("request", uid, f"it lacks {keyword} {min(missing - {''})} of its images")


def check_procedure(report: Dataset, uid: str, sources: Sequence[Dataset]) -> None:
    """Check that Procedure Reported is the procedure that made the images (TID 1500, row 4)."""
    said = {
        _triple(item.ConceptCodeSequence[0])
        for item in report.ContentSequence
        if item.ValueType == "CODE" and _triple(item.ConceptNameCodeSequence[0])[0] == "121058"
    }
    if not said:
        refuse("request", uid, "it does not say which procedure it reports on")
    performed = _coded(sources[0], "ProcedureCodeSequence")
    requested = {
        code
        for item in readable_items(sources[0], "RequestAttributesSequence")
        for code in _coded(item, "RequestedProcedureCodeSequence")
    }
    if missing := (performed or requested) - said:
        refuse("request", uid, f"it does not report on procedure {min(missing)[0]} of its images")


def _coded(holder: Dataset, keyword: str) -> set[tuple[str, str]]:
    return {
        _triple(item)
        for item in readable_items(holder, keyword)
        if all(map(_PLAIN.fullmatch, _triple(item))) and item.get("CodeMeaning")
    }


def _triple(item: Dataset) -> tuple[str, str]:
    return (
        str(item.get("CodeValue") or item.get("LongCodeValue") or "").strip(),
        str(item.get("CodingSchemeDesignator") or "").strip(),
    )


def _plain(holder: Dataset, keyword: str) -> str:
    text = str(holder.get(keyword) or "").strip()
    return text if _PLAIN.fullmatch(text) else ""


def _issuer(holder: Dataset) -> list[tuple[str, ...]]:
    said = [
        tuple(str(item.get(keyword) or "").strip() for keyword in _ISSUER)
        for item in readable_items(holder, "IssuerOfAccessionNumberSequence")
    ]
    return [each for each in said if any(each)]
