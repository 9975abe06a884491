"""What passes between supervisor and runner arrives as it was, and no death leaves anything."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dicomai.dicom.codes import Code
from dicomai.findings import Measurement, Segment
from dicomai.imaging.geometry import Grid
from dicomai.inference import shared_memory
from dicomai.inference.shared_memory import BadMessage, Channel, PeerGone, SharedPlanes

TISSUE = Code("85756007", "SCT", "Tissue")


def segment(mask: np.ndarray, value: float = 1.5) -> Segment:
    name = Code("118565006", "SCT", "Volume")
    measured = Measurement(name=name, value=value, unit=TISSUE)
    return Segment(
        label="肺",
        tracking_id="lung",
        category=TISSUE,
        type=TISSUE,
        mask=mask,
        measurements=(measured,),
    )


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = Channel.pair()
    other = Channel(theirs)
    yield ours, other
    ours.close()
    other.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


numbers = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(endianness="="),
    arrays.unsigned_integer_dtypes(endianness="="),
    arrays.floating_dtypes(endianness="="),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_array_of_numbers_arrives_as_it_was(
    channels: tuple[Channel, Channel], data: st.DataObject
) -> None:
    shape = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
    sent = data.draw(arrays.arrays(numbers, shape))
    channels[0].send(segment(sent))
    came = channels[1].receive(5)
    assert isinstance(came, Segment)
    assert came.mask.dtype == sent.dtype
    assert came.mask.shape == sent.shape
    assert came.mask.tobytes() == sent.tobytes()


def test_what_stands_beside_the_arrays_arrives_too(channels: tuple[Channel, Channel]) -> None:
    grid = Grid(
        shape_kji=(2, 3, 4),
        index_to_lps=np.diag([2.5, 0.7, 0.7, 1.0]),
        frame_of_reference_uid="1.2.3",
        sop_instance_uids=("1.2.3.1", "1.2.3.2"),
    )
    found = segment(np.zeros((2, 3, 4), bool), value=np.float32(2.5))
    channels[0].send((grid, found, {"infer": 1.25}))
    got = channels[1].receive(5)
    assert isinstance(got, tuple)
    assert got[0].sop_instance_uids == grid.sop_instance_uids
    assert np.array_equal(got[0].index_to_lps, grid.index_to_lps)
    assert (got[1].label, got[1].type, got[1].measurements) == ("肺", TISSUE, found.measurements)
    assert got[2] == {"infer": 1.25}


def test_views_that_are_not_contiguous_arrive_in_order(channels: tuple[Channel, Channel]) -> None:
    base = np.arange(2 * 6 * 8, dtype=np.int16).reshape(2, 6, 8)
    channels[0].send(base[:, ::-2, 1::3])
    assert np.array_equal(channels[1].receive(5), base[:, ::-2, 1::3])


def test_masks_travel_as_bits_and_volumes_are_not_copied(
    channels: tuple[Channel, Channel],
) -> None:
    mask = np.zeros((64, 128, 128), bool)
    mask[3:9] = True
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        Channel(ours).send(mask)
        packet = theirs.recv(16)
        assert struct.unpack("<QQ", packet)[1] < mask.size / 7
    channels[0].send(np.ones((64, 128, 128), np.int16))
    volume = channels[1].receive(5)
    assert isinstance(volume, np.ndarray)
    assert not volume.flags.owndata
    assert not volume.flags.writeable


def test_a_volume_made_in_shared_memory_passes_as_it_is_and_more_than_once(
    channels: tuple[Channel, Channel],
) -> None:
    before = descriptors()
    planes = SharedPlanes((3, 4, 5))
    for k in (2, 0, 1):
        planes.put(k, np.full((4, 5), k, np.int16))
    planes.put(1, planes.get(1) + np.int16(40))
    volume = planes.together()
    assert volume[:, 0, 0].tolist() == [0, 41, 2]
    assert not volume.flags.writeable
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        Channel(ours).send(volume)
        packet, handed, *_ = theirs.recvmsg(16, socket.CMSG_SPACE(8))
        assert struct.unpack("<QQ", packet)[1] < volume.nbytes + 64  # no voxel is in the message
        own = array("i", handed[0][2])
        assert os.pread(own[1], volume.nbytes, 0) == volume.tobytes()
        for each in own:
            os.close(each)
    for _ in range(2):
        channels[0].send((volume, volume[1:]))
        whole, part = channels[1].receive(5)
        assert np.array_equal(whole, volume)
        assert np.array_equal(part, volume[1:])
        assert not whole.flags.writeable
        del whole, part
    del planes, volume
    assert descriptors() == before


def test_a_volume_that_its_sender_can_change_or_that_is_too_small_is_refused() -> None:
    volume = SharedPlanes((3, 4, 5)).together()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        Channel(ours).send(volume)
        packet, handed, *_ = theirs.recvmsg(16, socket.CMSG_SPACE(8))
        own = array("i", handed[0][2])
    other = os.memfd_create("other", os.MFD_ALLOW_SEALING)
    os.ftruncate(other, 60)
    for sealed, why in ((False, "can still change"), (True, "a volume with shape")):
        if sealed:
            fcntl.fcntl(other, fcntl.F_ADD_SEALS, fcntl.fcntl(own[0], fcntl.F_GET_SEALS))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [own[0], other]))]
            ours.sendmsg([packet], rights)
            with pytest.raises(BadMessage, match=why):
                Channel(theirs).receive(5)
    for each in (*own, other):
        os.close(each)


def test_a_volume_for_which_there_is_no_memory_leaves_nothing() -> None:
    before = descriptors()
    with pytest.raises(MemoryError):
        SharedPlanes((2**21, 2**21, 2**21))
    assert descriptors() == before


def test_a_volume_may_take_what_is_free_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who fills more than that has the kernel end some process, with all its jobs."""
    monkeypatch.setattr(shared_memory, "host_free_bytes", lambda: 120)
    SharedPlanes((3, 4, 5))
    with pytest.raises(MemoryError):
        SharedPlanes((3, 4, 6))


def test_nothing_but_our_own_dataclasses_is_read(channels: tuple[Channel, Channel]) -> None:
    channels[0].send(subprocess.Popen)
    with pytest.raises(BadMessage, match=r"subprocess\.Popen does not pass"):
        channels[1].receive(5)
    with pytest.raises(BadMessage, match="object"):
        channels[0].send(np.array(["text"], dtype=object))


def test_a_message_over_the_limit_is_neither_sent_nor_taken() -> None:
    ours, theirs = Channel.pair(max_bytes=10_000)
    with pytest.raises(BadMessage, match="at most 10000"):
        ours.send(np.zeros(20_000, np.uint8))
    Channel(ours._socket).send(np.zeros(20_000, np.uint8))
    other = Channel(theirs, max_bytes=10_000)
    with pytest.raises(BadMessage, match="at most 10000"):
        other.receive(5)
    ours.close()
    other.close()


def test_memory_that_its_sender_can_change_is_refused() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, 64)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with ours, theirs:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [memory]))]
        ours.sendmsg([struct.pack("<QQ", 64, 64)], rights)
        with pytest.raises(BadMessage, match="can still change"):
            Channel(theirs).receive(5)
    os.close(memory)


def test_nothing_comes_in_time(channels: tuple[Channel, Channel]) -> None:
    assert channels[0].receive(0.01) is None


def test_descriptors_are_given_back(channels: tuple[Channel, Channel]) -> None:
    before = descriptors()
    for _ in range(20):
        channels[0].send(segment(np.ones((4, 8, 8), bool)))
        channels[1].receive(5)
    assert descriptors() == before


SENDER = """
import os, signal, socket, sys
import numpy as np
from dicomai.inference.shared_memory import Channel
channel = Channel(socket.socket(fileno=int(sys.argv[1])))
for number in range(3):
    channel.send(np.full((32, 64, 64), number, np.int16))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_sender_leaves_what_it_sent_and_nothing_else() -> None:
    before, shared = descriptors(), set(Path("/dev/shm").iterdir())
    channel, theirs = Channel.pair()
    fd = theirs.fileno()
    with subprocess.Popen([sys.executable, "-c", SENDER, str(fd)], pass_fds=[fd]) as child:
        theirs.close()
        assert child.wait(20) == -signal.SIGKILL
    for number in range(3):
        came = channel.receive(5)
        assert isinstance(came, np.ndarray)
        assert (came == number).all()
        del came
    with pytest.raises(PeerGone):
        channel.receive(5)
    with pytest.raises(PeerGone):
        channel.send(np.zeros(4))
    channel.close()
    assert descriptors() == before
    assert set(Path("/dev/shm").iterdir()) == shared
