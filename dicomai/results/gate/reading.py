"""Reading an object that may be broken: whatever is wrong with its bytes breaks a rule."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset

from dicomai.results.gate.error import GateError, refuse

# What reading a broken object raises, wherever that is: nothing there, or not what it ought to be.
_BROKEN: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
    struct.error,
)


def opened(source: bytes | Path) -> FileDataset:
    """Return an object as it would be sent.

    Raises
    ------
    GateError
        It is no whole Part 10 file (PS3.10 7), or says another thing inside than outside.
    """
    name = str(source) if isinstance(source, Path) else "the object"
    raw = source.read_bytes() if isinstance(source, Path) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read = pydicom.dcmread(io.BytesIO(raw))
            name = str(read.SOPInstanceUID)
            if read.file_meta.MediaStorageSOPInstanceUID != read.SOPInstanceUID:
                refuse("readable", name, "its file meta information names another instance")
            if read.file_meta.MediaStorageSOPClassUID != read.SOPClassUID:
                refuse("readable", name, "its file meta information names another class")
            last: object = read.get_item(max(read.keys()))
            if isinstance(last, RawDataElement) and last.value_tell + last.length != len(raw):
                refuse("readable", name, "something stands behind its last element")
    except GateError:
        raise
    except Exception as trouble:  # noqa: BLE001  # whatever pydicom says, it can't be read
        refuse("readable", name, f"it can't be read ({trouble})")
    return read


@contextmanager
def strictly_read(read: Dataset) -> Iterator[None]:
    """Turn warnings about characters into the rule of text, other trouble into that of reading."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for words in (".*encod", ".*replacement", ".*character set", ".*escape", ".*Unknown"):
                warnings.filterwarnings("error", message=words, category=UserWarning)
            yield
    except (UserWarning, UnicodeError) as trouble:
        refuse("text", str(read.SOPInstanceUID), f"a character can't be read back ({trouble})")
    except _BROKEN as trouble:
        refuse("readable", str(read.SOPInstanceUID), f"it can't be read ({trouble})")
