"""What a peer's status says, in plain words, and what follows (PS3.4 B.2.3, PS3.7 annex C)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

StoreKind = Literal["ok", "warning", "transient", "refused"]
"""Stored; stored with a remark; to be tried again; refused for good."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a status means."""

    kind: StoreKind
    words: str


MEANINGS: Final[Mapping[int, Meaning]] = MappingProxyType(
    {
        0x0000: Meaning("ok", "stored it"),
        0x0001: Meaning("warning", "stored it, with attributes it did not expect"),
        0x0105: Meaning("refused", "does not know one of its attributes"),
        0x0106: Meaning("refused", "takes one of its values for invalid"),
        0x0107: Meaning("warning", "stored it, and left out some attributes"),
        0x0110: Meaning("transient", "failed while it processed it"),
        0x0111: Meaning("warning", "has an object with this UID already"),
        0x0112: Meaning("refused", "knows no such object"),
        0x0115: Meaning("refused", "takes one of its arguments for invalid"),
        0x0116: Meaning("warning", "stored it, and found a value out of range"),
        0x0117: Meaning("refused", "takes its SOP Instance UID for invalid"),
        0x0118: Meaning("refused", "does not know its SOP class"),
        0x0119: Meaning("refused", "takes its SOP class for another kind"),
        0x0120: Meaning("refused", "misses one of its attributes"),
        0x0121: Meaning("refused", "misses one of its values"),
        0x0122: Meaning("refused", "does not support its SOP class"),
        0x0124: Meaning("refused", "does not allow DICOMAI to store"),
        0x0210: Meaning("transient", "says that the message was sent twice"),
        0x0211: Meaning("refused", "does not know what C-STORE is"),
        0x0212: Meaning("refused", "takes one of its arguments for mistyped"),
        0x0213: Meaning("transient", "has no resources left"),
        0xB000: Meaning("warning", "stored it, and changed values in it"),
        0xB006: Meaning("warning", "stored it, and left elements out"),
        0xB007: Meaning("warning", "stored it, though its data set does not match its SOP class"),
        0xFE00: Meaning("transient", "cancelled it"),
    }
)
"""What a peer may answer to a C-STORE (PS3.4 B.2.3, PS3.7 annex C)."""
RANGES: Final[tuple[tuple[int, int, Meaning], ...]] = (
    (0xA700, 0xA7FF, Meaning("transient", "is out of resources: its disk may be full")),
    (0xA900, 0xA9FF, Meaning("refused", "says that its data set does not match its SOP class")),
    (0xA000, 0xAFFF, Meaning("refused", "failed to store it")),
    (0xB000, 0xBFFF, Meaning("warning", "stored it, with a warning")),
    (0xC000, 0xCFFF, Meaning("refused", "can't understand it")),
)
"""The first digits that say what it is, whatever follows."""


def meaning(status: int) -> Meaning:
    """Return what a status of a C-STORE response means; one that no standard knows is a refusal."""
    if status in MEANINGS:
        return MEANINGS[status]
    for first, last, means in RANGES:
        if first <= status <= last:
            return means
    return Meaning("refused", "answered with a status that the standard does not know")


def store_sentence(node: str, what: str, status: int, comment: str) -> str:
    """Return what a node answered for an object, for an administrator.

    Parameters
    ----------
    node
        Its name.
    what
        The object.
    status
        Of the response.
    comment
        The node's own words (Error Comment), or nothing.
    """
    means = meaning(status)
    own = f', "{comment}"' if comment else ""
    sentence = f"{node} {means.words}: {what} (status 0x{status:04X}{own})."
    if means.kind == "refused":
        sentence += " Ask its administrator what its log says of it."
    return sentence


REJECTIONS: Final[Mapping[tuple[int, int], str]] = MappingProxyType(
    {
        (1, 1): "without a reason. Allow {ours} there",
        (1, 2): "for the application context. It speaks another version of DICOM",
        (
            1,
            3,
        ): "because it does not know {ours}. Add that AE title and our address there",
        (1, 7): "because it is not called {theirs}. Correct ae_title of node {node}",
        (2, 1): "without a reason. Look at its log",
        (2, 2): "for the version of the protocol. It speaks another one",
        (3, 1): "because it is busy. It is worth another try",
        (3, 2): "because it has as many associations as it takes. It is worth another try",
    }
)
_FOR_GOOD: Final = frozenset({(1, 2), (1, 3), (1, 7), (2, 2)})


def rejection(
    node: str, theirs: str, ours: str, result: int, source: int, diagnostic: int
) -> tuple[Literal["transient", "refused"], str]:
    """Return what is to be done about an A-ASSOCIATE-RJ (PS3.8 9.3.4), and a sentence.

    One for good that gives no reason counts as transient: many say so while they start.
    """
    words = REJECTIONS.get((source, diagnostic), "for a reason that the standard does not know")
    sentence = f"{node} rejected the association {words}.".format(
        node=node, theirs=theirs, ours=ours
    )
    for_good = result == 1 and (source, diagnostic) in _FOR_GOOD
    return ("refused" if for_good else "transient"), sentence
