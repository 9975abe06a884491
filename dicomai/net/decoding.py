"""Data sets of messages that are no objects, decoded within bounds."""

from __future__ import annotations

import zlib
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.dsutils import decode

from dicomai.errors import InputError
from dicomai.net.messages import MAX_OTHER_DATA_BYTES


def decoded(raw: BytesIO, transfer_syntax: str) -> Dataset:
    """Return the data set of a message.

    Parameters
    ----------
    raw
        Its bytes.
    transfer_syntax
        Of its presentation context.

    Raises
    ------
    InputError
        It can't be read, or is larger inflated than it may be.
    """
    syntax, data = UID(transfer_syntax), raw.getvalue()
    try:
        if syntax.is_deflated:
            machine = zlib.decompressobj(-zlib.MAX_WBITS)
            data = machine.decompress(data, MAX_OTHER_DATA_BYTES)
            if machine.unconsumed_tail:
                raise InputError("The message is too large when it is inflated.")
        return decode(BytesIO(data), syntax.is_implicit_VR, syntax.is_little_endian)
    except InputError:
        raise
    except Exception as trouble:
        raise InputError("The message can't be read.") from trouble
