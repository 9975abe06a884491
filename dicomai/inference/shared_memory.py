"""Messages between a supervisor and its runner: arrays in anonymous shared memory, the rest beside.

A message is one sealed memfd that passes over an AF_UNIX socket. Its arrays are written there once
and mapped at the other end, never pickled; what is left of the message, small frozen dataclasses,
lies before them. A volume that was made in a memfd of its own passes with it. A memfd has no name,
so whoever dies leaves nothing behind.
"""

from __future__ import annotations

import array
import fcntl
import io
import math
import mmap
import os
import pickle  # only our own dataclasses are read, see _Reader
import select
import socket
import struct
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from dicomai.imaging.mask import Mask, blank_mask, bounds
from dicomai.inference.memory import host_free_bytes

if TYPE_CHECKING:
    from typing import Self

_ALIGNMENT: Final = 64
_PACKET: Final = struct.Struct("<QQ")  # bytes before the arrays, bytes in all
_MOST_VOLUMES: Final = 16
"""With a message."""
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_KINDS: Final = "biuf"

MAX_BYTES: Final = 64 * 2**30
"""A message larger than this is refused: a volume of 4096 x 1024 x 1024 float32 has 16 GiB."""


class PeerGone(ConnectionError):
    """The process at the other end has closed its socket, or died."""


class BadMessage(ValueError):
    """What came is no message of ours: wrong seals, bounds or types."""


class Channel:
    """One end of the way between two processes; messages keep their order and their bounds.

    Parameters
    ----------
    connection
        A connected AF_UNIX socket of type SOCK_SEQPACKET; the channel closes it.
    max_bytes
        Messages larger than this are neither sent nor taken.
    """

    def __init__(self, connection: socket.socket, *, max_bytes: int = MAX_BYTES) -> None:
        self._socket = connection
        self._max_bytes = max_bytes
        # The number of a descriptor that is closed may be another's by the time it is written to.
        self._writing = threading.Lock()

    @classmethod
    def pair(cls, *, max_bytes: int = MAX_BYTES) -> tuple[Self, socket.socket]:
        """Return our end as a channel, and the other end as a socket to hand to a child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours, max_bytes=max_bytes), theirs

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; the other reads PeerGone, and who still sends from here gets it."""
        with self._writing:
            self._socket.close()

    def send(self, message: object) -> None:
        """Send a message.

        Parameters
        ----------
        message
            A dataclass of ours, whose fields hold plain values, tuples, dicts, other dataclasses of
            ours and numpy arrays of booleans or numbers. Booleans travel as bits.

        Raises
        ------
        PeerGone
            Nobody is at the other end, or this one was closed.
        BadMessage
            It holds something else, or is too large.
        """
        writer = _Writer(message)
        size = writer.array_start + writer.array_bytes
        if size > self._max_bytes:
            raise BadMessage(f"a message of {size} bytes; at most {self._max_bytes} are allowed")
        descriptor = _memory(size)
        try:
            writer.write(descriptor)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            packet = _PACKET.pack(len(writer.skeleton), size)
            handed = array.array("i", [descriptor, *(each.descriptor for each in writer.volumes)])
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handed)]
            with self._writing:
                if self._socket.fileno() < 0:
                    raise PeerGone("this end is closed")
                self._socket.sendmsg([packet], rights, socket.MSG_NOSIGNAL)
        except ConnectionError as error:
            raise PeerGone("the other end is gone") from error
        finally:
            os.close(descriptor)

    def receive(self, timeout_s: float | None = None) -> object | None:
        """Return the next message, or None when none came in time.

        Arrays of numbers are views of the shared memory, and read-only; boolean ones are copies.

        Raises
        ------
        PeerGone
            The other end is closed and nothing more will come.
        BadMessage
            What came is no message of ours.
        """
        # No time limit on the socket itself: it would hold for who sends meanwhile, too.
        if timeout_s is not None and not self._comes(timeout_s):
            return None
        try:
            packet, rights, flags, _ = self._socket.recvmsg(
                _PACKET.size, socket.CMSG_SPACE(4 + 4 * _MOST_VOLUMES), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError as error:
            raise PeerGone("the other end is gone") from error
        descriptors = array.array("i")
        for _, _, data in rights:
            descriptors.frombytes(data)
        try:
            if not packet:
                raise PeerGone("the other end is closed")
            if len(packet) != _PACKET.size or not descriptors or flags & socket.MSG_CTRUNC:
                raise BadMessage("a packet without its shared memory")
            volumes = [_sealed(each, self._max_bytes) for each in descriptors[1:]]
            skeleton_bytes, size = _PACKET.unpack(packet)
            return _read(descriptors[0], skeleton_bytes, size, volumes, max_bytes=self._max_bytes)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _comes(self, timeout_s: float) -> bool:
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        return bool(waiting.poll(timeout_s * 1000))


class _Volume(mmap.mmap):
    """Sealed memory of a volume, mapped; it passes to another process as it is."""

    descriptor = -1

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class SharedPlanes:
    """Slices that are put into a memfd: the volume of them passes to a runner without a copy.

    The kernel promises anonymous memory to whoever asks, and ends some process when it has none to
    fill it with. So a volume that is larger than what is free is a MemoryError before.
    """

    _descriptor = -1

    def __init__(self, shape_kji: tuple[int, int, int]) -> None:
        self._shape = shape_kji
        self._plane_bytes = 2 * shape_kji[1] * shape_kji[2]
        size = shape_kji[0] * self._plane_bytes
        if size > host_free_bytes():
            raise MemoryError
        self._descriptor = _memory(size)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def put(self, k: int, plane: npt.NDArray[np.int16]) -> None:
        """Take a slice, (J, I)."""
        octets = np.ascontiguousarray(plane).data.cast("B")
        _put(self._descriptor, octets, k * self._plane_bytes)

    def get(self, k: int) -> npt.NDArray[np.int16]:
        """Return a slice, (J, I)."""
        octets = os.pread(self._descriptor, self._plane_bytes, k * self._plane_bytes)
        return np.frombuffer(octets, np.int16).reshape(self._shape[1:])

    def together(self) -> npt.NDArray[np.int16]:
        """Return all, (K, J, I), read-only."""
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
        memory = _Volume(self._descriptor, 0, access=mmap.ACCESS_READ)
        memory.descriptor, self._descriptor = self._descriptor, -1
        return np.frombuffer(memory, np.int16).reshape(self._shape)


def _memory(size: int) -> int:
    """Return a descriptor of new anonymous memory."""
    descriptor = os.memfd_create("dicomai", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _put(descriptor: int, octets: memoryview, offset: int) -> None:
    """Write octets into anonymous memory: mapped, there would be a fault for each page of it."""
    at = 0
    while at < len(octets):
        at += os.pwrite(descriptor, octets[at:], offset + at)


def _volume_of(obj: npt.NDArray[np.generic]) -> _Volume | None:
    """Return the memory that an array is the whole of, in order; None where it is not."""
    base: object = obj
    while isinstance(base, np.ndarray):
        if base.nbytes != obj.nbytes or not base.flags.c_contiguous:
            return None
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    whole = isinstance(base, _Volume) and len(base) == obj.nbytes
    return base if whole and isinstance(base, _Volume) else None


class _Writer(pickle.Pickler):
    """Pickles all but the arrays, which get a place in shared memory instead."""

    def __init__(self, message: object) -> None:
        self._buffer = io.BytesIO()
        super().__init__(self._buffer, protocol=5)
        self._arrays: list[tuple[int, npt.NDArray[np.generic]]] = []
        self.volumes: list[_Volume] = []
        self.array_bytes = 0
        self.dump(message)
        self.skeleton = self._buffer.getvalue()
        self.array_start = _aligned(len(self.skeleton))

    def persistent_id(self, obj: object) -> tuple[object, ...] | None:
        if isinstance(obj, np.generic):
            return ("scalar", obj.item())
        if not isinstance(obj, np.ndarray):
            return None
        if obj.dtype.kind not in _KINDS or not obj.dtype.isnative:
            raise BadMessage(f"an array of {obj.dtype}; only booleans and numbers pass")
        if obj.dtype.kind == "b" and obj.ndim == 3:
            cut = bounds(obj)
            corners = None if cut is None else tuple((part.start, part.stop) for part in cut)
            inside = obj[:0] if cut is None else obj[cut]
            return ("mask", obj.shape, corners, self._placed(np.packbits(inside)))
        volume = _volume_of(obj)
        if volume is not None and len(self.volumes) < _MOST_VOLUMES:
            self.volumes.append(volume)
            return ("volume", len(self.volumes) - 1, obj.shape, obj.dtype.str)
        packed = obj.dtype.kind == "b"
        offset = self._placed(np.packbits(obj) if packed else obj)
        return ("array", offset, obj.shape, obj.dtype.str, packed)

    def _placed(self, stored: npt.NDArray[np.generic]) -> int:
        offset = self.array_bytes
        self.array_bytes = _aligned(offset + stored.nbytes)
        self._arrays.append((offset, stored))
        return offset

    def write(self, descriptor: int) -> None:
        """Fill the memory; nothing of it stays mapped, or it could not be sealed."""
        _put(descriptor, memoryview(self.skeleton), 0)
        for offset, stored in self._arrays:
            at = self.array_start + offset
            # A large array that is not in order as it stands is copied part by part.
            parts = [stored] if stored.flags.c_contiguous or not stored.ndim else stored
            for part in parts:
                if part.size:
                    octets = np.ascontiguousarray(part).data.cast("B")
                    _put(descriptor, octets, at)
                    at += len(octets)


class _Reader(pickle.Unpickler):
    """Reads what `_Writer` wrote; knows the project's own classes and nothing else."""

    def __init__(
        self, memory: mmap.mmap, skeleton_bytes: int, volumes: Sequence[mmap.mmap]
    ) -> None:
        super().__init__(io.BytesIO(memory[:skeleton_bytes]))
        self._memory = memory
        self._volumes = volumes
        self._start = _aligned(skeleton_bytes)

    def find_class(self, module_name: str, global_name: str) -> object:
        if module_name.partition(".")[0] == "dicomai":
            found = super().find_class(module_name, global_name)
            if isinstance(found, type):
                return found
        raise BadMessage(f"{module_name}.{global_name} does not pass between processes")

    def persistent_load(self, pid: tuple[object, ...]) -> object:
        match pid:
            case ("scalar", value):
                return value
            case ("array", int(offset), tuple(shape), str(dtype), bool(packed)):
                return self._array(offset, shape, np.dtype(dtype), packed=packed)
            case ("volume", int(number), tuple(shape), str(dtype)):
                return self._volume(number, shape, np.dtype(dtype))
            case ("mask", (int(k), int(j), int(i)), corners, int(offset)):
                return self._mask((k, j, i), corners, offset)
        raise BadMessage("a reference to nothing in shared memory")

    def _volume(
        self, number: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]
    ) -> npt.NDArray[np.generic]:
        if dtype.kind not in _KINDS or not 0 <= number < len(self._volumes):
            raise BadMessage(f"a volume of {dtype} without its shared memory")
        memory = self._volumes[number]
        if min(shape, default=0) <= 0 or math.prod(shape) * dtype.itemsize != len(memory):
            raise BadMessage(f"a volume with shape {shape} of {len(memory)} bytes")
        return np.frombuffer(memory, dtype).reshape(shape)

    def _mask(self, shape: tuple[int, int, int], corners: object, offset: int) -> Mask:
        """Return a mask of which only what lies between two corners was sent."""
        if min(shape) < 0:
            raise BadMessage(f"a mask with shape {shape}")
        out = blank_mask(shape)
        if corners is None:
            return out
        match corners:
            case ((int(k), int(to_k)), (int(j), int(to_j)), (int(i), int(to_i))):
                inside = out[k:to_k, j:to_j, i:to_i]
            case _:
                raise BadMessage("a mask without corners")
        wanted = (to_k - k, to_j - j, to_i - i)
        if min(k, j, i) < 0 or inside.shape != wanted:
            raise BadMessage("a mask that reaches beyond its grid")
        inside[:] = self._array(offset, wanted, np.dtype(np.bool_), packed=True)
        return out

    def _array(
        self, offset: int, shape: tuple[int, ...], dtype: np.dtype[np.generic], *, packed: bool
    ) -> npt.NDArray[np.generic]:
        count = math.prod(shape)
        stored_bytes = (count + 7) // 8 if packed else count * dtype.itemsize
        start = self._start + offset
        if dtype.kind not in _KINDS or min(offset, count) < 0:
            raise BadMessage(f"an array of {dtype} with shape {shape}")
        if start + stored_bytes > len(self._memory) and stored_bytes:
            raise BadMessage("an array that ends behind its shared memory")
        if not count:
            return np.zeros(shape, dtype)
        if packed:
            bits = np.frombuffer(self._memory, np.uint8, stored_bytes, start)
            return np.unpackbits(bits, count=count).reshape(shape).view(np.bool_)
        return np.frombuffer(self._memory, dtype, count, start).reshape(shape)


def _sealed(descriptor: int, max_bytes: int, size: int | None = None) -> mmap.mmap:
    """Return shared memory, read-only, that nobody can change any more."""
    # Or the sender could shrink it under our feet (SIGBUS) or change it while we read.
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise BadMessage("shared memory that its sender can still change")
    there = os.fstat(descriptor).st_size
    if size is not None and there != size:
        raise BadMessage("shared memory of another size than announced")
    if there > max_bytes:
        raise BadMessage(f"a volume of {there} bytes; at most {max_bytes} are allowed")
    return mmap.mmap(descriptor, there, access=mmap.ACCESS_READ)


def _read(
    descriptor: int,
    skeleton_bytes: int,
    size: int,
    volumes: Sequence[mmap.mmap],
    *,
    max_bytes: int,
) -> object:
    if size > max_bytes or skeleton_bytes > size:
        raise BadMessage(f"a message of {size} bytes; at most {max_bytes} are allowed")
    memory = _sealed(descriptor, max_bytes, size)
    try:
        message: object = _Reader(memory, skeleton_bytes, volumes).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError) as error:
        raise BadMessage(f"a message that can't be read: {error}") from error
    return message


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
