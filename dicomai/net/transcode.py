"""Writing an object in another transfer syntax, where a peer lacks the one that it has."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomai.errors import InputError

EXPLICIT: Final = ExplicitVRLittleEndian
IMPLICIT: Final = ImplicitVRLittleEndian
# Bytes of a word, which big endian turns round (PS3.5 7.3).
_WORDS: Final = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


def transcoded(source: Path, target: Path, transfer_syntax: str) -> None:
    """Write an object in Explicit or Implicit VR Little Endian; its UID stays (PS3.4 B.4.1.1).

    Raises
    ------
    InputError
        Its pixels can't be decoded here.
    """
    try:
        data_set = dcmread(source)
        if data_set.file_meta.TransferSyntaxUID.is_encapsulated:
            data_set.decompress(generate_instance_uid=False)
        elif not data_set.file_meta.TransferSyntaxUID.is_little_endian:
            data_set.walk(_turn_words)
        data_set.file_meta.TransferSyntaxUID = UID(transfer_syntax)
        # Not `save_as`, which refuses to go from big to little endian: the words are turned above.
        dcmwrite(
            target,
            data_set,
            implicit_vr=transfer_syntax == IMPLICIT,
            little_endian=True,
            enforce_file_format=True,
        )
    except (
        InvalidDicomError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ) as trouble:  # what pydicom and its decoders raise
        reason = str(trouble).strip().splitlines() or [type(trouble).__name__]
        raise InputError(
            f"it can't be decoded ({reason[0].rstrip('.')}).", subject=str(source)
        ) from (trouble)


def _turn_words(_data_set: Dataset, element: DataElement) -> None:
    width = _WORDS.get(element.VR)
    if width and isinstance(element.value, bytes):
        element.value = np.frombuffer(element.value, f">u{width}").astype(f"<u{width}").tobytes()
