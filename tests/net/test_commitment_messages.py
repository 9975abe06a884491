"""Messages about storage commitment are read as they were written, or refused in a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.dsutils import encode

from dicomai.errors import InputError
from dicomai.net.admission import COMMITMENT
from dicomai.net.commitment import (
    INSTANCE,
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
from dicomai.spool import reader

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
REQUEST = CommitmentRequest(
    transaction_uid="1.2.8",
    objects=tuple(
        Reference(sop_class_uid="1.2.840.10008.5.1.4.1.1.2", sop_instance_uid=f"1.2.3.{number}")
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


def test_a_request_is_durable_before_the_answer_is_sent(
    make_receiver: Callable[..., Any], peer: Callable[[str], str], tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    watched = "mkdir,fsync,fdatasync,sync_file_range,rename,sendto"
    options = ["-f", "--seccomp-bpf", "-y", "-s", "200", "-e", f"trace={watched}", "-o", str(trace)]
    node = {
        "name": "CT1",
        "ae_title": "CT1",
        "host": "127.0.0.1",
        "port": 104,
        "may": ["commit"],
    }
    receiver = make_receiver(prefix=[peer("strace"), *options], nodes=[node])
    entity = AE("CT1")
    entity.add_requested_context(COMMITMENT)
    association = entity.associate("127.0.0.1", receiver.port, ae_title="DICOMAI")
    said, _ = association.send_n_action(written_request(REQUEST), 1, COMMITMENT, INSTANCE)
    assert said.Status == 0
    association.release()
    (entry,) = reader.entries(receiver.spool)
    assert entry.kind == "commit"
    assert read_request(dcmread(entry.path)) == REQUEST
    names = []
    for line in trace.read_text().splitlines():
        step = re.sub(r"\d{16}(-[0-9a-f]{8})?", "T", line).replace(str(receiver.spool), "")
        if "/.slots" in step:  # places of associations, which are no promise
            continue
        if found := re.search(r"(mkdir|rename)\((.*)\) = 0|(\w*sync\w*)\(\d+<([^>]*)>", step):
            names.append(" ".join(part for part in found.groups() if part))
        elif re.search(r'sendto\(\d+<.*>, "\\4', step):  # a P-DATA-TF: the response
            names.append("answer")
    assert names[names.index('rename "/.new-T", "/T"') : names.index("answer") + 1] == [
        'rename "/.new-T", "/T"',
        'rename "/T/.000001.part", "/T/.000001-T.part"',
        "sync_file_range /T/.000001-T.part",
        'rename "/T/.000001-T.part", "/T/000001-T.commit"',
        "fsync /T/000001-T.commit",
        "fsync /T",
        "fsync",
        "answer",
    ]


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
