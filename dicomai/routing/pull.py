"""A pull: what is fetched from a node by itself, again and again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from dicomai.dicom.dates import days_before

LOOK_BACK: Final = timedelta(days=30)
"""A pull that was not answered for longer is begun anew: it was taken out meanwhile."""


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
        Studies of so many days, today and yesterday always among them: a study of the evening may
        reach the node after midnight. After an outage they count from the day of the last answer.
        0: of any date.
    keys
        What else must match, as `KEYWORD=VALUE`: "ModalitiesInStudy=CT",
        "StudyDescription=*CHEST*".
    priority
        Of the retrievals; more comes first.
    """

    name: str
    node: str
    every_s: float = 300.0
    days: int = 2
    keys: tuple[str, ...] = ()
    priority: int = 0

    def asked(self, today: date, answered: date | None) -> Mapping[str, str]:
        """Return the keys of its query, by keyword.

        Parameters
        ----------
        answered
            The day of the last query that was answered.
        """
        parts = (each.partition("=") for each in self.keys)
        keys = {keyword: value for keyword, _, value in parts}
        if not self.days:
            return keys
        since = today
        if answered is not None and today - LOOK_BACK <= answered < today:
            since = answered
        first = days_before(since, max(self.days, 2) - 1)
        return {"StudyDate": f"{first:%Y%m%d}-{today:%Y%m%d}", **keys}
