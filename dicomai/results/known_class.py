"""Images that highdicom does not take as what they are.

Retired and private classes it does not know, and of classes for several frames it wants to hear of
each one. It is given another class in the place of theirs, which is put back when it is done.
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
CAPTURE: Final = str(uids.SecondaryCaptureImageStorage)
# Their IODs have no Multi-frame Module (PS3.3 A.1.4); others may have one frame, and say so.
_OF_ONE_FRAME: Final = frozenset(
    {
        CAPTURE,
        uids.CTImageStorage,
        uids.ComputedRadiographyImageStorage,
        uids.DermoscopicPhotographyImageStorage,
        uids.DigitalIntraOralXRayImageStorageForPresentation,
        uids.DigitalIntraOralXRayImageStorageForProcessing,
        uids.DigitalMammographyXRayImageStorageForPresentation,
        uids.DigitalMammographyXRayImageStorageForProcessing,
        uids.DigitalXRayImageStorageForPresentation,
        uids.DigitalXRayImageStorageForProcessing,
        uids.MRImageStorage,
        uids.PositronEmissionTomographyImageStorage,
        uids.UltrasoundImageStorage,
        uids.VLEndoscopicImageStorage,
        uids.VLMicroscopicImageStorage,
        uids.VLPhotographicImageStorage,
        uids.VLSlideCoordinatesMicroscopicImageStorage,
    }
)


def is_known(image: Dataset) -> bool:
    """Tell whether highdicom takes a reference to an image under its class."""
    return str(image.SOPClassUID) in KNOWN


def is_of_one_frame(image: Dataset) -> bool:
    """Tell whether highdicom knows the class of an image, as one of one frame."""
    return str(image.SOPClassUID) in _OF_ONE_FRAME


def known_class(sop_class_uid: str) -> str:
    """Return a class that highdicom takes in a reference; of several frames are known ones only."""
    return sop_class_uid if sop_class_uid in KNOWN else CAPTURE


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
