"""The shape of an A-ASSOCIATE-RQ, looked at before anything is made of it (PS3.8 9.3.2).

Some of what pynetdicom does with an item takes time with the square of their number, so a stranger
could keep a core busy for hours with one PDU. What no peer in earnest has is therefore not read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final

TYPE: Final = 0x01
# A presentation context has an odd ID of one byte (PS3.8 9.3.2.2).
MAX_CONTEXTS: Final = 128
# Three times what PS3.6 knows.
MAX_TRANSFER_SYNTAXES: Final = 256
MAX_USER_ITEMS: Final = 1024

# Protocol version, both AE titles, and what is reserved.
_FIXED_BYTES: Final = 68
_ITEM: Final = struct.Struct(">BxH")
_APPLICATION_CONTEXT: Final = 0x10
_PRESENTATION_CONTEXT: Final = 0x20
_USER_INFORMATION: Final = 0x50
_CONTEXT_HEAD_BYTES: Final = 4
# Where each title stands, and the diagnostic of its rejection (PS3.8 9.3.4).
_TITLES: Final = {"called": (slice(4, 20), 7), "calling": (slice(20, 36), 3)}
_TITLE_BYTES: Final = 16
# PS3.5 6.2: printable characters of ASCII without the backslash, and not only spaces.
_TITLE: Final = re.compile(rb"(?=.*[^ ])[ -\[\]-~]{1,16}")


class Unshapely(Exception):
    """The request has a shape that no request may have; says which."""


class NoTitle(Unshapely):
    """An AE title is none; says which.

    Attributes
    ----------
    rejection
        The PDU that tells the peer so.
    """

    def __init__(self, sentence: str, diagnostic: int) -> None:
        super().__init__(sentence)
        self.rejection = bytes((0x03, 0, 0, 0, 0, 4, 0, 1, 1, diagnostic))


def check_titles(body: bytearray) -> None:
    """Look whether the AE titles are any; NULs that pad them, as some devices do, become spaces.

    Parameters
    ----------
    body
        The PDU after its length, of the shape of a request.

    Raises
    ------
    NoTitle
        One is none.
    """
    for which, (where, diagnostic) in _TITLES.items():
        title = bytes(body[where]).rstrip(b"\0")
        if _TITLE.fullmatch(title) is None:
            said = title.decode("latin-1").strip()
            raise NoTitle(
                f"Its {which} AE title is {said!a}, which is none: 1 to 16 characters of ASCII "
                "without a backslash. Change it at the device.",
                diagnostic,
            )
        body[where] = title.ljust(_TITLE_BYTES)


def check(body: memoryview) -> None:
    """Look whether a request has a shape that can be read in bounded time.

    Parameters
    ----------
    body
        The PDU after its length.

    Raises
    ------
    Unshapely
        It has not.
    """
    if len(body) < _FIXED_BYTES:
        raise Unshapely(f"An association request has {len(body)} bytes, too few for its titles.")
    contexts = 0
    for kind, item in _items(body[_FIXED_BYTES:], MAX_CONTEXTS + 2):
        if kind == _PRESENTATION_CONTEXT:
            contexts += 1
            if len(item) < _CONTEXT_HEAD_BYTES:
                raise Unshapely("A presentation context ends within its head.")
            _count(item[_CONTEXT_HEAD_BYTES:], 1 + MAX_TRANSFER_SYNTAXES)
        elif kind == _USER_INFORMATION:
            _count(item, MAX_USER_ITEMS)
        elif kind != _APPLICATION_CONTEXT:
            raise Unshapely(f"An association request has an item of the unknown type 0x{kind:02X}.")
    if contexts > MAX_CONTEXTS:
        raise Unshapely(f"An association request has {contexts} presentation contexts.")


def _count(data: memoryview, limit: int) -> None:
    for _ in _items(data, limit):
        pass


def _items(data: memoryview, limit: int) -> Iterator[tuple[int, memoryview]]:
    """Yield type and content of each item; of no more than so many."""
    count = 0
    while data:
        count += 1
        if count > limit:
            raise Unshapely(f"A part of an association request has more than {limit} items.")
        if len(data) < _ITEM.size:
            raise Unshapely("An item of an association request ends within its head.")
        kind, length = _ITEM.unpack_from(data)
        if length > len(data) - _ITEM.size:
            raise Unshapely("An item of an association request goes beyond its end.")
        yield kind, data[_ITEM.size : _ITEM.size + length]
        data = data[_ITEM.size + length :]
