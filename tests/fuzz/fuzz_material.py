"""Bytes that are nearly right: seeds of the corpus, and what a hostile peer makes of them."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

from hypothesis import strategies as st

CORPUS: Final = Path(__file__).parent / "corpus"
# Lengths and numbers at which parsers break.
EDGES: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)


def seeds(target: str) -> list[bytes]:
    """Return what the corpus has for a target."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


def examples(usual: int) -> int:
    """Return how many examples to try; DICOMAI_FUZZ makes it so many times as many."""
    return int(usual * float(os.environ.get("DICOMAI_FUZZ", "1")))


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """Draw one of some originals, changed in up to six places."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(("flip", "edge", "cut", "insert", "repeat", "splice")))
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "edge":
            width = draw(st.sampled_from(("<H", ">H", "<L", ">L", "B")))
            number = draw(st.sampled_from(EDGES)) & (2 ** (8 * struct.calcsize(width)) - 1)
            data[at : at + struct.calcsize(width)] = struct.pack(width, number)
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=32))
        elif kind == "repeat":
            piece = bytes(data[at : at + draw(st.integers(1, 32))])
            data[at:at] = piece * draw(st.integers(1, 20))
        elif kind == "splice":
            other = draw(st.sampled_from(originals))
            data[at:] = other[draw(st.integers(0, len(other))) :]
    return bytes(data)


def pdu(kind: int, body: bytes, said: int | None = None) -> bytes:
    """Encode a PDU; it may lie about its length."""
    return struct.pack(">BxL", kind, len(body) if said is None else said) + body


@st.composite
def pdvs(draw: st.DrawFn) -> bytes:
    """Draw PDVs of commands and data sets, in contexts that exist and that do not."""
    material = [*seeds("command_sets"), *seeds("heads"), b""]
    found = b""
    for _ in range(draw(st.integers(0, 4))):
        piece = draw(st.sampled_from(material) | mutated(material))
        said = draw(st.just(len(piece) + 2) | st.sampled_from(EDGES))
        context = draw(st.sampled_from((1, 3, 5, 0, 255)))
        control = draw(st.sampled_from((0, 1, 2, 3, 0xFF)))
        found += struct.pack(">LBB", said, context, control) + piece
    return found


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """Draw all that a peer sends: mostly a request that is accepted, then PDUs of any kind."""
    requests = [pdu(1, body) for body in seeds("association_requests")]
    said = draw(st.sampled_from(requests) | mutated(requests))
    for _ in range(draw(st.integers(0, 5))):
        said += draw(
            st.builds(pdu, st.just(4), pdvs())
            | st.builds(pdu, st.just(4), pdvs(), st.sampled_from(EDGES))
            | st.builds(pdu, st.sampled_from((1, 2, 3, 5, 6, 7)), st.just(bytes(4)))
            | st.builds(pdu, st.integers(0, 255), st.binary(max_size=64), st.sampled_from(EDGES))
            | st.binary(max_size=64)
        )
    return said
