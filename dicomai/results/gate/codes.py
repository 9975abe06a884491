"""Coded concepts, as results say them."""

from __future__ import annotations

from pydicom.dataset import Dataset

from dicomai.dicom.codes import Code


def code_of(item: Dataset) -> str:
    """Return the value of a coded concept, short or long (PS3.3 8.8)."""
    return str(item.get("CodeValue") or item.get("LongCodeValue") or "")


def is_coded(item: Dataset, code: Code) -> bool:
    """Tell whether an item is a code, its meaning too: that is what people read."""
    return (code_of(item), item.get("CodingSchemeDesignator"), item.get("CodeMeaning")) == (
        code.value,
        code.scheme,
        code.meaning,
    )
