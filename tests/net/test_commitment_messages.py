"""Messages about storage commitment are read as they were written, or refused in a sentence."""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom.dsutils import encode

from dicomai.errors import InputError
from dicomai.net.commitment import (
    CommitmentReport,
    CommitmentRequest,
    Failure,
    Reference,
    read_report,
    read_request,
    written_report,
    written_request,
)
from dicomai.net.decoding import decoded

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
REQUEST = CommitmentRequest(
    transaction_uid="1.2.8",
    objects=tuple(
        Reference(sop_class_uid="1.2.840.10008.5.1.4.1.1.2", sop_instance_uid=f"1.2.3.{number}")  # type: ignore[arg-type]
        for number in range(3)
    ),
)
REPORT = CommitmentReport(
    transaction_uid="1.2.8",
    committed=REQUEST.objects[:2],
    failed=(Failure(object=REQUEST.objects[2], reason=0x0112),),
)


def octets(message: Dataset, syntax: str) -> bytes:
    encoded = encode(message, syntax == IMPLICIT, True)
    assert encoded is not None
    return encoded


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_what_was_written_is_read(syntax: str) -> None:
    request = octets(written_request(REQUEST), syntax)
    assert read_request(decoded(BytesIO(request), syntax)) == REQUEST
    report = octets(written_report(REPORT), syntax)
    assert read_report(decoded(BytesIO(report), syntax)) == REPORT
    assert REPORT.event_type == 2
    assert CommitmentReport(transaction_uid="1.2", committed=(), failed=()).event_type == 1


def test_what_is_named_as_committed_and_as_failed_has_failed() -> None:
    message = written_report(REPORT)
    message.ReferencedSOPSequence.extend(written_request(REQUEST).ReferencedSOPSequence)
    assert {each.sop_instance_uid for each in read_report(message).committed} == {
        each.sop_instance_uid for each in REPORT.committed
    }


@settings(max_examples=150)
@given(
    data=st.sampled_from((written_request(REQUEST), written_report(REPORT))),
    syntax=st.sampled_from((IMPLICIT, EXPLICIT)),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 400),
)
def test_bytes_that_are_nearly_right(
    data: Dataset, syntax: str, changes: list[tuple[int, int]], cut: int
) -> None:
    said = bytearray(octets(data, syntax))
    for at, value in changes:
        said[at % len(said)] = value
    said = said[: len(said) - cut % len(said)]
    for read in (read_request, read_report):
        with suppress(InputError):  # and nothing else
            read(decoded(BytesIO(said), syntax))
