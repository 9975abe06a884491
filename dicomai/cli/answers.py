"""What dicomai answers to peers and makes of their answers, for its conformance statement."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pydicom.dataset import Dataset

from dicomai.cli.produced import Table
from dicomai.net import admission, answering, find, mpps, reception, status
from dicomai.net import commitment_taking as taking
from dicomai.net.node import Node
from dicomai.service.promise import WHY

_PEER: Final = Node(name="The node", ae_title="NODE")


def _code(value: int) -> str:
    return f"`0x{value:04X}`"


def store() -> Table:
    """Return what a C-STORE is answered."""
    return (
        ("status", "when"),
        [
            (_code(reception.SUCCESS), "The object, its name and its folder are on the disk."),
            (
                _code(reception.NOT_SUPPORTED),
                "The presentation context is of another service, which brings no objects.",
            ),
            (
                _code(reception.OUT_OF_RESOURCES),
                (
                    "The disk has less than `receiver.reserve_bytes` left, or failed; the object "
                    "is larger than `receiver.max_object_bytes`; the receiver is stopping."
                ),
            ),
            (
                _code(reception.DOES_NOT_MATCH),
                (
                    "SOP class or instance of the data set are not those of the command, or the "
                    "class is not that of the presentation context."
                ),
            ),
            (
                _code(reception.CANNOT_UNDERSTAND),
                (
                    "The head of the data set, up to Series Instance UID, can't be read in its "
                    "transfer syntax, or lacks a UID."
                ),
            ),
        ],
    )


def steps() -> Table:
    """Return what a message about a procedure step is answered."""
    return (
        ("status", "when"),
        [
            (_code(mpps.SUCCESS), "The message is on the disk."),
            (
                _code(mpps.INVALID_ATTRIBUTE),
                (
                    "It can't be read, has no status of a procedure step, or N-CREATE another one "
                    "than IN PROGRESS."
                ),
            ),
            (_code(mpps.PROCESSING_FAILURE), "The disk is full or failed."),
            (_code(mpps.INVALID_INSTANCE), "The UID of the step is missing or none."),
            (_code(mpps.NO_SUCH_CLASS), "It came in a context of another SOP class."),
        ],
    )


def commitment() -> Table:
    """Return what a message about storage commitment is answered."""
    request, report = "N-ACTION", "N-EVENT-REPORT"
    both = f"{request}, {report}"
    return (
        ("status", "of", "when"),
        [
            (_code(taking.SUCCESS), both, "The message is on the disk."),
            (
                _code(taking.PROCESSING_FAILURE),
                both,
                "The disk failed, or the receiver stops.",
            ),
            (_code(taking.NO_SUCH_INSTANCE), both, "It is about another than the one instance."),
            (_code(taking.NO_SUCH_EVENT_TYPE), report, "Its Event Type ID is neither 1 nor 2."),
            (
                _code(taking.INVALID_ARGUMENT),
                both,
                "It can't be read, has no Transaction UID, or a request names no object.",
            ),
            (_code(taking.NO_SUCH_CLASS), both, "It is about, or in a context of, another class."),
            (_code(taking.NO_SUCH_ACTION), request, "Its Action Type ID is not 1."),
            (
                _code(taking.NOT_AUTHORISED),
                both,
                'The node has no "commit" in its `may`; or it is not asked, and reports.',
            ),
            (
                _code(taking.OUT_OF_RESOURCES),
                both,
                "The disk has less than `receiver.reserve_bytes` left.",
            ),
        ],
    )


def reasons() -> Table:
    """Return why an object is not committed."""
    return (
        ("Failure Reason", "the object"),
        [(_code(reason), f"is {words}") for reason, words in sorted(WHY.items())],
    )


def query() -> Table:
    """Return what C-FIND, C-GET and C-MOVE are answered."""
    every, moving = "C-FIND, C-GET, C-MOVE", "C-GET, C-MOVE"
    return (
        ("status", "of", "when"),
        [
            (_code(answering.SUCCESS), every, "All matches were given; all objects were sent."),
            (_code(answering.PENDING), every, "A match; an object was dealt with."),
            (
                _code(answering.PENDING_WITHOUT_SOME_KEYS),
                "C-FIND",
                "A match, and some keys were not heeded.",
            ),
            (_code(answering.CANCELLED), every, "The peer cancelled it (C-CANCEL)."),
            (
                _code(answering.WITH_FAILURES_OR_WARNINGS),
                moving,
                "Some objects could not be sent, or were taken with a warning.",
            ),
            (_code(answering.UNABLE_TO_SEND), moving, "No object could be sent."),
            (
                _code(answering.UNKNOWN_DESTINATION),
                "C-MOVE",
                "No node with `host` has that AE title.",
            ),
            (
                _code(answering.DOES_NOT_MATCH),
                every,
                (
                    "The identifier or a key in it can't be read; it has no level of its model, "
                    "lacks the unique key of a level above, or names nothing that is to be sent. "
                    "Error Comment says which."
                ),
            ),
            (
                _code(answering.UNABLE_TO_PROCESS),
                every,
                "The catalogue or the archive is away; our log says more.",
            ),
        ],
    )


_DONE: Final = MappingProxyType(
    {
        "ok": "delivered",
        "warning": "delivered, with an event",
        "transient": "tried again later",
        "refused": "failed, for a person",
    }
)


def to_store() -> Table:
    """Return what is made of the answer to a C-STORE."""
    rows = [
        (_code(code), each.words, _DONE[each.kind]) for code, each in status.MEANINGS.items()
    ] + [
        (f"{_code(first)} to {_code(last)}", each.words, _DONE[each.kind])
        for first, last, each in status.RANGES
    ]
    other = status.meaning(0x0ABC)
    rows.append(("any other", other.words, _DONE[other.kind]))
    return (("status", "taken to mean: the node …", "the object is"), rows)


def to_find() -> Table:
    """Return what is made of the answer to C-FIND, C-GET and C-MOVE."""
    rows = [
        ("`0x0000`", "all was given or sent"),
        ("`0xFF00`, `0xFF01`", "a match; progress"),
        ("`0xB000` (C-GET, C-MOVE)", "done; what failed is counted, told, and asked for again"),
    ]
    for code in (0x0122, 0x0124, 0xA701, 0xA702, 0xA801, 0xA900, 0xFE00, 0xC000):
        found = find.failed(_PEER, "do it", code, Dataset())
        shown = _code(code) if code != 0xC000 else "any other"
        rows.append((shown, "failed, for a person" if found.kind == "refused" else "tried again"))
    return (("status", "then"), rows)


def rejections() -> Table:
    """Return how associations are rejected."""
    words: Mapping[tuple[int, int, int], str] = {
        admission.CALLED_UNKNOWN: "called AE title not recognized: we have another, or it is none",
        admission.CALLING_UNKNOWN: "calling AE title not recognized: no node has it, calls from "
        "there, has TLS or shows that certificate, or it is none",
        admission.LOCAL_LIMIT_EXCEEDED: "local limit exceeded: all places are taken, or all of "
        "that node",
        admission.LOCAL_FAILURE: "no reason given: trouble at our side",
    }
    results = {1: "permanent", 2: "transient"}
    sources = {
        1: "service user",
        2: "service provider (ACSE)",
        3: "service provider (presentation)",
    }
    return (
        ("result", "source", "reason"),
        [
            (f"{code[0]}, {results[code[0]]}", f"{code[1]}, {sources[code[1]]}",
             f"{code[2]}, {text}")
            for code, text in words.items()
        ],
    )  # fmt: skip


def rejected() -> Table:
    """Return what is made of a rejection."""
    rows = []
    for source, diagnostic in status.REJECTIONS:
        kind, sentence = status.rejection("the node", "NODE", "DICOMAI", 1, source, diagnostic)
        why = sentence.removeprefix("the node rejected the association ").partition(". ")[0]
        then = "failed, for a person" if kind == "refused" else "tried again"
        rows.append((source, diagnostic, why.rstrip("."), then))
    return (("source", "reason", "taken to mean: rejected …", "if permanent"), rows)
