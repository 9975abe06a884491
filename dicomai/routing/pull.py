"""A pull: what is fetched from a node by itself, again and again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """A rule of the configuration: which studies of a node are fetched as they appear there.

    Attributes
    ----------
    name
        How events and the log call it.
    node
        Where from.
    every_s
        How often it is asked.
    days
        Studies of so many days, today among them; 0: of any date.
    keys
        What else must match, as `KEYWORD=VALUE`: "ModalitiesInStudy=CT",
        "StudyDescription=*CHEST*".
    priority
        Of the retrievals; more comes first.
    """

    name: str
    node: str
    every_s: float = 300.0
    days: int = 1
    keys: tuple[str, ...] = ()
    priority: int = 0

    def asked(self, today: date) -> Mapping[str, str]:
        """Return the keys of its query, by keyword."""
        parts = (each.partition("=") for each in self.keys)
        keys = {keyword: value for keyword, _, value in parts}
        if self.days == 1:
            return {"StudyDate": f"{today:%Y%m%d}", **keys}
        if self.days:
            first = today - timedelta(days=self.days - 1)
            return {"StudyDate": f"{first:%Y%m%d}-{today:%Y%m%d}", **keys}
        return keys
