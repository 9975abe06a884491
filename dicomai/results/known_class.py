"""Images of classes that highdicom does not know: retired ones, private ones.

It is given another class in the place of theirs, which is put back when it is done.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pydicom import uid as uids
from pydicom.dataset import Dataset

KNOWN: Final = frozenset(
    str(value)
    for name, value in vars(uids).items()
    if isinstance(value, uids.UID)
    and "Storage" in name
    and not name.startswith(("DICOS", "EddyCurrent"))
)
_OF_ONE_FRAME: Final = str(uids.SecondaryCaptureImageStorage)


def is_known(image: Dataset) -> bool:
    """Tell whether highdicom takes an image under its class."""
    return str(image.SOPClassUID) in KNOWN


def known_class(sop_class_uid: str) -> str:
    """Return a class that highdicom takes; of several frames are known ones only."""
    return sop_class_uid if sop_class_uid in KNOWN else _OF_ONE_FRAME


def put_back(result: Dataset, images: Iterable[Dataset]) -> None:
    """Give every reference to one of these images its class, in whatever sequence it stands."""
    strange = {
        str(each.SOPInstanceUID): str(each.SOPClassUID) for each in images if not is_known(each)
    }
    if strange:
        _put_back(result, strange)


def _put_back(holder: Dataset, classes: dict[str, str]) -> None:
    uid = str(holder.get("ReferencedSOPInstanceUID") or "")
    if uid in classes:
        holder.ReferencedSOPClassUID = classes[uid]
    for element in holder:
        if element.VR == "SQ":
            for item in element.value:
                _put_back(item, classes)
