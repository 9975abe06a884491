"""What a person said of a study, instead of what its objects say: whose it is, and its number.

Objects that come later still say what they said, and undo nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrections:
    """What stands for what objects of a study say.

    Attributes
    ----------
    keys, accession_numbers
        By what objects say; what is not in it stands as it is said.
    """

    keys: Mapping[IdentityKey, IdentityKey]
    accession_numbers: Mapping[str, str]


def of_study(connection: Connection, study: StudyInstanceUID) -> Corrections:
    """Return all that a person corrected of a study."""
    keys, numbers = schema.corrected_keys, schema.corrected_accession_numbers
    return Corrections(
        keys={
            IdentityKey(row.patient_key): IdentityKey(row.corrected_key)
            for row in connection.execute(select(keys).where(keys.c.study_instance_uid == study))
        },
        accession_numbers={
            row.accession_number: row.corrected_number
            for row in connection.execute(
                select(numbers).where(numbers.c.study_instance_uid == study)
            )
        },
    )


def correct_key(
    connection: Connection,
    study: StudyInstanceUID,
    wrong: IdentityKey,
    right: IdentityKey,
    had: IdentityKey | None,
) -> None:
    """Note that a study's objects of one patient are another's, and so are those yet to come.

    Only keys that objects have are noted, or had before retention deleted them, for they may come
    again: what a person mistyped and took back stands for nobody.

    Parameters
    ----------
    had
        The key that the study had; objects said that, unless a person gave it. Each result of the
        study is corrected by itself, and from the second on it is the right one.
    """
    said, corrected = schema.series_identities, schema.corrected_keys
    own = corrected.c.study_instance_uid == study
    before = of_study(connection, study).keys
    keys = select(said.c.patient_key).where(said.c.study_instance_uid == study).distinct()
    known = {*connection.execute(keys).scalars(), *before}
    if wrong == had and wrong not in before.values():
        known.add(wrong)
    for key in sorted(known):
        if key and before.get(key, key) == wrong:
            connection.execute(delete(corrected).where(own, corrected.c.patient_key == key))
            if key != right:
                connection.execute(
                    insert(corrected).values(
                        study_instance_uid=study, patient_key=key, corrected_key=right
                    )
                )


def correct_accession_number(
    connection: Connection, study: StudyInstanceUID, said: Collection[str], had: str, number: str
) -> None:
    """Note that a study's number is another than its objects say, and those yet to come.

    Parameters
    ----------
    said
        What objects of it said.
    had
        The number that it had; counts as said too, unless a person gave it.
    """
    table = schema.corrected_accession_numbers
    own = table.c.study_instance_uid == study
    before = of_study(connection, study).accession_numbers
    wrong = {*before, *said}
    if had not in before.values():
        wrong.add(had)
    connection.execute(delete(table).where(own))
    for each in sorted(wrong - {"", number}):
        connection.execute(
            insert(table).values(
                study_instance_uid=study, accession_number=each, corrected_number=number
            )
        )


def accession_number(connection: Connection, study: StudyInstanceUID, said: str) -> str:
    """Return what stands for a number that an object said: itself, where nobody corrected it."""
    return of_study(connection, study).accession_numbers.get(said, said)
