"""What the receiver takes, refuses and promises, over real sockets and in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import UID_dictionary

from dicomai.spool import reader

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
VERIFICATION = "1.2.840.10008.1.1"
Receiver = Any  # of conftest.py, which tests can't import
MakeReceiver = Callable[..., Receiver]
Scu = Any


def test_dcmtk_is_heard_and_served(
    receiver: Receiver, peer: Callable[[str], str], sample_data: Path, scu: Scu
) -> None:
    where = ["-aet", "CT1", "-aec", "DICOMAI", "127.0.0.1", str(receiver.port)]
    subprocess.run([peer("echoscu"), *where], check=True, timeout=20)
    folder = sample_data / "transfer-syntaxes" / "ct512"
    sent = {
        "-xi": folder / "ct512_implicit-le.dcm",
        "-xb": folder / "ct512_explicit-be.dcm",
        "-xd": folder / "ct512_deflated.dcm",
        "-xr": folder / "ct512_rle.dcm",
        "-xs": folder / "ct512_jpeg-lossless-sv1-70.dcm",
        "-xt": folder / "ct512_jpegls-lossless-80.dcm",
        "-xv": folder / "ct512_j2k-lossless-90.dcm",
    }
    for option, path in sent.items():
        subprocess.run([peer("storescu"), option, *where, str(path)], check=True, timeout=20)
    kept = [scu.meta_of(entry.path) for entry in reader.entries(receiver.spool)]
    assert kept == [scu.meta_of(path) for path in sent.values()]


def test_every_transfer_syntax_is_kept_byte_for_byte(
    receiver: Receiver, sample_data: Path, scu: Scu
) -> None:
    listed = sample_data / "transfer-syntaxes"
    chosen: dict[str, Path] = {}
    for path in sorted(listed.rglob("*.dcm")):
        raw = path.read_bytes()[:144]
        if path.stat().st_size < 700_000 and raw[132:140] == b"\x02\x00\x00\x00UL\x04\x00":
            chosen.setdefault(scu.meta_of(path)[2], path)
    assert len(chosen) > 18
    sent = []
    contexts = [(scu.meta_of(path)[0], (uid,)) for uid, path in chosen.items()]
    with scu.calling(receiver.port, contexts) as association:
        assert len(association.accepted_contexts) == len(contexts)
        for number, path in enumerate(chosen.values()):
            sop_class, sop_instance, _ = scu.meta_of(path)
            status = scu.send(
                association,
                scu.data_set_of(path),
                sop_class=sop_class,
                sop_instance=sop_instance,
                context_id=2 * number + 1,
            )
            assert status == 0, path
            sent.append((scu.data_set_of(path), scu.meta_of(path)))
    kept = [
        (scu.data_set_of(each.path), scu.meta_of(each.path))
        for each in reader.entries(receiver.spool)
    ]
    assert kept == sent


def test_private_and_unknown_classes_and_syntaxes_are_stored(receiver: Receiver, scu: Scu) -> None:
    contexts = [("1.2.3.4.5.6", ("1.2.3.99", IMPLICIT)), ("1.2.840.10008.9.9.9", ("1.2.3.99",))]
    with scu.calling(receiver.port, contexts) as association:
        assert [str(each.transfer_syntax[0]) for each in association.accepted_contexts] == [
            IMPLICIT,  # others know it too
            "1.2.3.99",
        ]
        unknown = scu.tiny(sop_class=b"1.2.840.10008.9.9.9")
        status = scu.send(association, unknown, sop_class="1.2.840.10008.9.9.9", context_id=3)
        assert status == 0
    assert receiver.data_sets() == [unknown]


def test_the_senders_first_transfer_syntax_is_taken(receiver: Receiver, scu: Scu) -> None:
    contexts = [(CT, ("1.2.840.10008.1.2.4.90", EXPLICIT)), (MR, (EXPLICIT, IMPLICIT))]
    with scu.calling(receiver.port, contexts) as association:
        taken = [str(context.transfer_syntax[0]) for context in association.accepted_contexts]
        assert taken == ["1.2.840.10008.1.2.4.90", EXPLICIT]


def test_every_storage_class_of_the_standard_and_no_other_service_is_accepted(
    receiver: Receiver, scu: Scu
) -> None:
    storage = [
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and re.search(r"Storage( - Trial| SOP Class|$| - For )", name)
    ]
    storage = [uid for uid in storage if "Media Storage" not in UID_dictionary[uid][0]]
    others = [
        "1.2.840.10008.5.1.4.1.2.2.1",  # study root FIND
        "1.2.840.10008.5.1.4.1.2.2.2",  # MOVE
        "1.2.840.10008.1.20.1",  # Storage Commitment Push Model
        "1.2.840.10008.5.1.4.31",  # Modality Worklist
        "1.2.840.10008.1.3.10",  # Media Storage Directory
    ]
    accepted = set()
    for first in range(0, len(storage), 100):
        contexts = [(uid, (EXPLICIT,)) for uid in [*storage[first : first + 100], *others]]
        with scu.calling(receiver.port, contexts) as association:
            accepted |= {str(context.abstract_syntax) for context in association.accepted_contexts}
    assert len(storage) > 150
    assert accepted == set(storage)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({"called_ae": "OTHER"}, (1, 1, 7)),
        ({"calling_ae": "STRANGER"}, (1, 1, 3)),
    ],
)
def test_a_wrong_name_is_rejected_for_good(
    receiver: Receiver, scu: Scu, names: dict[str, str], reason: tuple[int, int, int]
) -> None:
    with scu.calling(receiver.port, **names) as association:
        assert association.is_rejected
        said = association.acceptor.primitive
        assert (said.result, said.result_source, said.diagnostic) == reason
    (line,) = scu.eventually(receiver.lines)
    assert line["event"] == "association rejected"
    assert next(iter(names.values())) in str(line["reason"])


def test_a_query_to_the_port_that_receives_is_told_of(receiver: Receiver, scu: Scu) -> None:
    with scu.calling(receiver.port, [("1.2.840.10008.5.1.4.1.2.2.1", [EXPLICIT])]) as association:
        assert not association.accepted_contexts
    line, *_ = scu.eventually(receiver.lines)
    assert line["event"] == "nothing accepted"
    assert "query.port" in str(line["reason"])


def test_a_node_is_known_by_title_and_address(make_receiver: MakeReceiver, scu: Scu) -> None:
    nodes = [
        {"name": "elsewhere", "ae_title": "CT1", "addresses": ["10.0.0.0/8"]},
        {"name": "here", "ae_title": "MR1", "addresses": ["10.1.1.1", "127.0.0.0/8"]},
        {"name": "echoes", "ae_title": "QA1", "may": ["echo"]},
    ]
    receiver = make_receiver(nodes=nodes)
    with scu.calling(receiver.port) as association:
        assert association.is_rejected
        assert association.acceptor.primitive.diagnostic == 3
    both = [(VERIFICATION, (IMPLICIT,)), (CT, (EXPLICIT,))]
    for title, taken in (("MR1", [VERIFICATION, CT]), ("QA1", [VERIFICATION])):
        with scu.calling(receiver.port, both, calling_ae=title) as association:
            assert [str(each.abstract_syntax) for each in association.accepted_contexts] == taken


def test_more_associations_than_allowed_are_rejected_for_now(
    make_receiver: MakeReceiver, scu: Scu
) -> None:
    receiver = make_receiver(max_associations=1)
    with scu.calling(receiver.port) as first:
        assert first.is_established
        with scu.calling(receiver.port) as second:
            said = second.acceptor.primitive
            assert (said.result, said.result_source, said.diagnostic) == (2, 3, 2)
    scu.eventually(lambda: any("stored" in line for line in receiver.lines()))
    with scu.calling(receiver.port) as third:
        assert third.is_established


def test_what_does_not_match_its_command_is_refused(receiver: Receiver, scu: Scu) -> None:
    with scu.calling(receiver.port, [(CT, (EXPLICIT,)), (MR, (EXPLICIT,))]) as association:
        assert scu.send(association, scu.tiny(), sop_instance="1.2.3.5") == 0xA900
        assert scu.send(association, scu.tiny(), sop_class=MR) == 0xA900
        assert scu.send(association, scu.tiny(), sop_class=MR, context_id=3) == 0xA900
        assert scu.send(association, scu.tiny()) == 0
    assert receiver.data_sets() == [scu.tiny()]
    (line,) = scu.eventually(receiver.lines)
    assert line["refused"] == {"0xA900": 3}
    assert line["stored"] == 1
    assert "1.2.3.5" in str(line["first_refusal"])


HOSTILE = (b"", b"../../etc/passwd", b"1.2/../3", b"1..2", b"1.2.", b"1.2x", b"1.2\n3", b"1." * 40)


def test_missing_and_hostile_uids_are_refused_and_harm_nothing_else(
    receiver: Receiver, scu: Scu
) -> None:
    with scu.calling(receiver.port) as association:
        for keyword in ("sop_class", "sop_instance", "study", "series"):
            for value in HOSTILE:
                status = scu.send(association, scu.tiny(**{keyword: value}))
                assert status == 0xC000, (keyword, value)
        assert scu.send(association, scu.tiny()) == 0
    assert receiver.data_sets() == [scu.tiny()]
    assert {path.name for path in receiver.spool.parent.iterdir()} == {"spool", "receiver.log"}


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # of the SCU's pydicom
def test_uids_with_leading_zeros_are_taken_as_they_are(receiver: Receiver, scu: Scu) -> None:
    sent = scu.tiny(sop_instance=b"1.2.03.04", study=b"1.2.03", series=b"1.2.03.0")
    with scu.calling(receiver.port) as association:
        assert scu.send(association, sent, sop_instance="1.2.03.04") == 0
        assert scu.send(association, sent, sop_instance="1.2.3.4") == 0xA900
    assert receiver.data_sets() == [sent]


def test_heads_that_cannot_be_read_are_refused(receiver: Receiver, scu: Scu) -> None:
    whole = scu.tiny()
    contexts = [(CT, (EXPLICIT,)), (CT, (DEFLATED,)), (CT, (IMPLICIT,))]
    with scu.calling(receiver.port, contexts) as association:
        for size in (1, 5, 20, len(whole) - 1):
            assert scu.send(association, whole[:size]) == 0xC000
        for context_id in (1, 3, 5):  # the last two: in another syntax than it was said
            wrong = b"\xff" * 64 if context_id == 1 else whole
            assert scu.send(association, wrong, context_id=context_id) == 0xC000
        nested = scu.element(8, 0x0018, "UI", b"")[:0]
        for _ in range(200):
            nested += bytes.fromhex("08004011") + b"SQ\0\0\xff\xff\xff\xff"
            nested += bytes.fromhex("feff00e0ffffffff")
        assert scu.send(association, nested) == 0xC000
        assert scu.send(association, whole) == 0
    assert receiver.data_sets() == [whole]


def test_everything_is_durable_before_the_answer_is_sent(
    make_receiver: MakeReceiver, scu: Scu, peer: Callable[[str], str], tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    watched = "mkdir,fsync,fdatasync,sync_file_range,rename,sendto"
    receiver = make_receiver(
        prefix=[
            peer("strace"),
            "-f",
            "--seccomp-bpf",
            "-y",
            "-s",
            "200",
            "-e",
            f"trace={watched}",
            "-o",
            str(trace),
        ]
    )
    with scu.calling(receiver.port) as association:
        assert scu.send(association, scu.tiny()) == 0
    scu.eventually(lambda: any("stored" in line for line in receiver.lines()))
    steps = [
        re.sub(r"\d{16}(-[0-9a-f]{8})?", "T", line).replace(str(receiver.spool), "")
        for line in trace.read_text().splitlines()
        if "/.slots" not in line  # places of associations, which are no promise
    ]
    names = []
    for step in steps:
        if found := re.search(r"(mkdir|rename)\((.*)\) = 0|(\w*sync\w*)\(\d+<([^>]*)>", step):
            names.append(" ".join(part for part in found.groups() if part))
        elif re.search(r'sendto\(\d+<.*>, "\\4', step):  # a P-DATA-TF: the response
            names.append("answer")
    assert names[: names.index("answer") + 1] == [
        'mkdir "/.new-T", 0750',
        'rename "/.new-T", "/T"',
        'rename "/T/.000001.part", "/T/.000001-T.part"',
        "sync_file_range /T/.000001-T.part",
        'rename "/T/.000001-T.part", "/T/000001-T.dcm"',
        "fsync /T/000001-T.dcm",
        "fsync /T",
        "fsync",
        "answer",
    ]


def test_a_killed_receiver_has_everything_it_acknowledged_and_nothing_half(
    receiver: Receiver, scu: Scu
) -> None:
    acknowledged: list[str] = []

    def stream() -> None:
        with scu.calling(receiver.port) as association:
            for number in range(1000):
                uid = f"1.2.9.{number + 1}"
                data_set = scu.tiny(sop_instance=uid.encode(), tail=bytes(200_000))
                if not association.is_established:
                    return
                if scu.send(association, data_set, sop_instance=uid) != 0:
                    return
                acknowledged.append(uid)

    sender = threading.Thread(target=stream)
    sender.start()
    scu.eventually(lambda: len(acknowledged) >= 5)
    receiver.kill()
    sender.join(30)
    (facts,) = reader.associations(receiver.spool)
    ended = reader.ended(receiver.spool, facts.id)
    assert ended is not None
    assert ended.how == "lost"

    receiver.start()
    with scu.calling(receiver.port) as association:
        assert scu.send(association, scu.tiny()) == 0
    kept = {scu.meta_of(entry.path)[1]: entry.path for entry in reader.entries(receiver.spool)}
    assert set(acknowledged) <= set(kept)
    assert len(kept) <= len(acknowledged) + 2  # one may have been kept and not yet answered
    for uid in acknowledged:
        assert scu.data_set_of(kept[uid]) == scu.tiny(
            sop_instance=uid.encode(), tail=bytes(200_000)
        )
    assert not list(receiver.spool.rglob(".0*.part"))


def test_how_an_association_ended_is_kept(receiver: Receiver, scu: Scu) -> None:
    def ends() -> list[str]:
        found = [
            reader.ended(receiver.spool, facts.id) for facts in reader.associations(receiver.spool)
        ]
        return [end.how for end in found if end is not None]

    with scu.calling(receiver.port) as association:
        scu.send(association, scu.tiny())
        (seen,) = reader.open_associations(receiver.spool)
        assert seen.studies == {"1.2.3.1"}
        assert (seen.facts.calling_ae, seen.facts.called_ae) == ("CT1", "DICOMAI")
        assert (seen.facts.address, seen.facts.node) == ("127.0.0.1", "ct1")
    scu.eventually(lambda: ends() == ["released"])
    with scu.calling(receiver.port) as association:
        scu.send(association, scu.tiny())
        association.abort()
    scu.eventually(lambda: ends() == ["released", "aborted"])
    with scu.calling(receiver.port) as association:
        scu.send(association, scu.tiny())
        scu.wire_of(association).shutdown(socket.SHUT_RDWR)
        scu.eventually(lambda: ends() == ["released", "aborted", "lost"])
    # The line comes after the end is kept.
    scu.eventually(lambda: len(receiver.lines()) == 3)
    assert [line["ended"] for line in receiver.lines()] == ["released", "aborted", "lost"]


def test_an_object_that_breaks_off_in_the_middle_is_not_kept(receiver: Receiver, scu: Scu) -> None:
    for number, ending in enumerate((b"", bytes.fromhex("07000000000400000000"))):
        with scu.calling(receiver.port) as association:
            assert scu.send(association, scu.tiny()) == 0
            wire = scu.wire_of(association)
            # A P-DATA-TF that says 1000 bytes and holds 6; then silence, or an A-ABORT within it.
            wire.sendall(bytes.fromhex("0400000003e8") + bytes.fromhex("000003e40100") + ending)
            with suppress(OSError):  # it may be aborted by now, and closed by pynetdicom
                wire.shutdown(socket.SHUT_RDWR)
            scu.eventually(lambda ended=number + 1: len(receiver.lines()) == ended)
    assert receiver.data_sets() == [scu.tiny(), scu.tiny()]
    with scu.calling(receiver.port) as association:
        assert scu.send(association, scu.tiny()) == 0


def test_sigterm_ends_it_in_order(receiver: Receiver, scu: Scu) -> None:
    with scu.calling(receiver.port) as association:
        assert scu.send(association, scu.tiny()) == 0
        receiver.process.send_signal(signal.SIGTERM)
        assert receiver.wait() == 0
        scu.eventually(lambda: association.is_aborted)
    assert receiver.data_sets() == [scu.tiny()]
    (facts,) = reader.associations(receiver.spool)
    ended = reader.ended(receiver.spool, facts.id)
    assert ended is not None
    assert ended.how == "aborted"


def test_sigterm_lets_the_object_in_hand_be_finished(
    make_receiver: MakeReceiver, scu: Scu, peer: Callable[[str], str]
) -> None:
    slow = ["-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "inject=fsync:delay_enter=60ms"]
    receiver = make_receiver(prefix=[peer("strace"), "-e", "trace=fsync", *slow])
    traced = Path(f"/proc/{receiver.process.pid}/task/{receiver.process.pid}/children")
    with scu.calling(receiver.port) as association:
        threading.Thread(
            target=lambda: (
                scu.eventually(lambda: list(receiver.spool.rglob("*000001-*"))),
                os.kill(int(traced.read_text().split()[0]), signal.SIGTERM),
            )
        ).start()
        assert scu.send(association, scu.tiny()) == 0
        assert receiver.wait() == 0
    assert receiver.data_sets() == [scu.tiny()]


def test_a_port_in_use_is_said(receiver: Receiver, make_receiver: MakeReceiver) -> None:
    with pytest.raises(
        pytest.fail.Exception, match=f"can't listen on 127.0.0.1 port {receiver.port}"
    ):
        make_receiver()


def test_receiver_processes_share_a_port_and_outlive_one_another(
    make_receiver: MakeReceiver, scu: Scu
) -> None:
    first, second = (make_receiver(shares_port=True) for _ in range(2))
    sent = []
    for number, gone in enumerate((None, first, second)):
        if gone is not None:
            gone.kill()
        uid = f"1.2.9.{number}"
        data_set = scu.tiny(sop_instance=uid.encode())
        with scu.calling(first.port) as association:
            assert scu.send(association, data_set, sop_instance=uid) == 0
        sent.append(data_set)
        if gone is first:
            first.start()
    assert first.data_sets() == sent
