"""Requests for storage commitment, from the spool into the catalogue: killed, and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import select

from dicomai.net.admission import COMMITMENT
from dicomai.net.commitment import INSTANCE, CommitmentRequest, Reference, written_request
from dicomai.net.reception import file_meta
from dicomai.spool.entries import opened
from dicomai.store import schema
from dicomai.store.engine import reading

Hospital = Any  # conftest's: importlib mode has no package to import it from
MakeCT = Callable[..., Any]
SYNTAX = "1.2.840.10008.1.2"
CT = "1.2.840.10008.5.1.4.1.1.2"


def test_killed_after_any_step_a_request_counts_once_and_after_what_came_before_it(
    hospital: Hospital, make_ct: MakeCT
) -> None:
    steps: list[str] = []
    number, killed = 0, 0
    while killed == number:
        number += 1
        study = f"1.2.{number}"
        send(hospital, make_ct, study)
        killed += hospital.ingest_until_killed(number)
        hospital.ingest(steps.append)
        table = schema.promises
        with reading(hospital.engine) as connection:
            rows = connection.execute(
                select(table).where(table.c.transaction_uid == f"{study}.8")
            ).all()
        assert [(row.node, row.state) for row in rows] == [("CT1", "asked")], number
        assert rows[0].objects == [[CT, f"{study}.1.1", 0]]
        assert len(hospital.rows(study)) == 1, number
        with reading(hospital.engine) as connection:
            (reached,) = connection.execute(select(schema.hosts.c.ingested_to)).scalars()
        assert reached > rows[0].received_at
    assert number > 6


def send(hospital: Hospital, make_ct: MakeCT, study: str) -> None:
    """Have an image come, and then a request that it be committed."""
    writer = opened(
        hospital.config.spool,
        calling_ae="CT1",
        called_ae="DICOMAI",
        address="192.0.2.1",
        node="CT1",
        started_at=hospital.clock,
    )
    hospital.add(writer, make_ct(study=study, series=f"{study}.1", number=1))
    asked = CommitmentRequest(
        transaction_uid=f"{study}.8",
        objects=(Reference(sop_class_uid=CT, sop_instance_uid=f"{study}.1.1"),),
    )
    path = hospital.folder / "message.dcm"
    message = written_request(asked)
    message.save_as(path, implicit_vr=True, little_endian=True)
    with writer.begin() as arriving:
        arriving.write(file_meta(COMMITMENT, INSTANCE, SYNTAX))
        arriving.write(path.read_bytes())
        arriving.keep(None, "commit")
        kept = arriving.entry.path
    # As the hospital's own objects: received by its clock.
    kept.rename(kept.with_stem(f"{kept.stem[:6]}-{hospital.clock:016d}"))
    writer.end("released", hospital.clock)
    hospital.later(1)
