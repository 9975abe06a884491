"""What a person said of a study, instead of what its objects say: whose it is, and its number.

Objects that come later still say what they said, and undo nothing.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, delete, insert, select

from dicomai.dicom.identity import IdentityKey
from dicomai.dicom.uid import StudyInstanceUID
from dicomai.store import schema


def correct_key(
    connection: Connection, study: StudyInstanceUID, wrong: IdentityKey | None, right: IdentityKey
) -> None:
    """Note that a study's objects of one patient are another's, and so are those yet to come.

    Only keys that objects have are noted: what a person mistyped and took back stands for nobody.
    """
    said, corrected = schema.series_identities, schema.corrected_keys
    own = corrected.c.study_instance_uid == study
    before = {
        row.patient_key: row.corrected_key
        for row in connection.execute(
            select(corrected.c.patient_key, corrected.c.corrected_key).where(own)
        )
    }
    keys = select(said.c.patient_key).where(said.c.study_instance_uid == study).distinct()
    for key in connection.execute(keys).scalars().all():
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
    before = {
        row.accession_number: row.corrected_number
        for row in connection.execute(select(table).where(own))
    }
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
    table = schema.corrected_accession_numbers
    corrected: str | None = connection.execute(
        select(table.c.corrected_number).where(
            table.c.study_instance_uid == study, table.c.accession_number == said
        )
    ).scalar_one_or_none()
    return corrected or said
