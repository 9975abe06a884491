"""The items of a report's content (PS3.3 C.17.3)."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataset import Dataset

from dicomai.results.gate.codes import code_of


def walk(holder: Dataset) -> Iterator[Dataset]:
    """Yield each item of a content tree, what holds others before them."""
    for item in holder.get("ContentSequence") or ():
        yield item
        yield from walk(item)


def name(item: Dataset) -> str:
    """Return the code of what an item is."""
    names = item.get("ConceptNameCodeSequence")
    return code_of(names[0]) if names else ""
