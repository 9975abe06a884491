"""A received object: everything that the catalogue and the rules need of a file, read once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

from dicomai.dicom.header import AttributeValue, Identifiers, attributes, identifiers
from dicomai.dicom.identity import Identity, identity_of
from dicomai.dicom.part10 import Scratch, opened
from dicomai.dicom.uid import has_leading_zero
from dicomai.dicom.version import VersionDigest, version_digest

_LEADING_ZERO: Final = (
    "A UID has a number that begins with 0, which PS3.5 9.1 forbids. Results repeat it, and a "
    "strict PACS may refuse them; have the device that makes such UIDs mended."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How objects of a node are read.

    Attributes
    ----------
    issuer_of_patient_id, charset_default
        Of the node, see `dicomai.net.node.Node`.
    placeholder_ids
        Patient IDs that stand for none.
    scratch
        Takes a data set that is deflated; without it, the system's temporary folder.
    """

    issuer_of_patient_id: str = ""
    charset_default: str = ""
    placeholder_ids: Collection[str] = ()
    scratch: Scratch | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedObject:
    """What stands in a file.

    Attributes
    ----------
    file_sha256
        Of all its bytes, lower-case hex.
    remarks
        What is wrong with it and does no harm, one sentence each.
    """

    identifiers: Identifiers
    transfer_syntax_uid: str
    attributes: dict[str, AttributeValue]
    identity: Identity
    version: VersionDigest
    file_sha256: str
    size_bytes: int
    remarks: tuple[str, ...]


def read_object(path: Path, reading: Reading) -> ReceivedObject:
    """Return what stands in a DICOM file, followed to its last byte; no pixel is decoded.

    Raises
    ------
    InputError
        It is no DICOM file, is damaged or mislabelled, or lacks a UID; the sentence says which.
    DiskFull
        It is deflated, and there is no room to inflate it.
    """
    with opened(path, reading.scratch) as part10:
        found = identifiers(part10)
        header = attributes(part10, reading.charset_default)
        identity = identity_of(
            header,
            issuer_of_node=reading.issuer_of_patient_id,
            placeholders=reading.placeholder_ids,
        )
        remarks = part10.remarks
        if part10.media_sop_instance_uid not in ("", found.sop_instance_uid):
            remarks += ("Its meta information names another SOP Instance UID than its data set.",)
        if any(map(has_leading_zero, astuple(found))):
            remarks += (_LEADING_ZERO,)
        version = version_digest(part10, identity.key or "", header)
        syntax = part10.transfer_syntax_uid
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ReceivedObject(
        identifiers=found,
        transfer_syntax_uid=syntax,
        attributes=header,
        identity=identity,
        version=version,
        file_sha256=digest,
        size_bytes=path.stat().st_size,
        remarks=remarks,
    )
