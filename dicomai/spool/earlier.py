"""Associations as versions before 0.1.0 kept them: facts and end in files of JSON, not in names.

What they had acknowledged may lie in the spool when a newer version starts.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Final

from dicomai.dicom.dates import Instant
from dicomai.spool.entries import AssociationFacts, AssociationId, End

FACTS: Final = "facts.json"
END: Final = "end.json"


def facts(folder: Path) -> AssociationFacts | None:
    """Return who sends; None where there is no such file, or it can't be read."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        said = json.loads((folder / FACTS).read_bytes())
        return AssociationFacts(
            id=AssociationId(folder.name),
            calling_ae=said["calling_ae"],
            called_ae=said["called_ae"],
            address=said["address"],
            node=said["node"],
            started_at=Instant(said["started_at"]),
        )
    return None


def end(folder: Path) -> End | None:
    """Return when and how it ended; None where there is no such file, or it can't be read."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        said = json.loads((folder / END).read_bytes())
        return End(at=Instant(said["at"]), how=said["how"])
    return None
