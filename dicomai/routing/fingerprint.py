"""What makes an analysis the same one: package, images in their versions, generation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from dicomai.routing.image import Image


def fingerprint(package_sha256: str, images: Iterable[Image], generation: int) -> str:
    """Return the fingerprint of an analysis, a SHA-256 in lower-case hex.

    Parameters
    ----------
    package_sha256
        Digest of the model package.
    images
        All that the model is given; their order does not matter.
    generation
        0, and one more with each `dicomai retry --again`.
    """
    versions = sorted(
        (image.sop_instance_uid, image.header_digest, image.pixel_digest or "") for image in images
    )
    text = json.dumps([package_sha256, versions, generation], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
