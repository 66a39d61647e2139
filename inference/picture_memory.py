"""The memory in which an API worker hands its pictures to an engine: written once by the one, read in place by the other.

It belongs to one connection: the worker makes it and passes it on with its first byte, and when either side goes it goes with that
connection. See docs/decisions/0005.
"""

from __future__ import annotations

import asyncio
import fcntl
import heapq
import mmap
import os
import socket
from typing import Final, Self

import numpy as np

from inference.sealed_memory import set_size
from inference.types import Pixels

_HELLO: Final = b"\0"
_HELLO_TIMEOUT_S: Final = 10.0


class PictureSlots:
    """The worker's side: a place for each picture that the engine may still read. One event loop's thread alone.

    A place is used again once the engine has answered, whether or not somebody still waited for the answer: until then a lane may read it.

    Args:
        max_pictures: how many places there are. Each takes memory from its first use until the connection ends; giving it back as soon as
            nothing is in flight costs more than the copy through a socket that this saves.
    """

    def __init__(self, max_pictures: int) -> None:
        self._max_pictures = max_pictures
        self._file = os.memfd_create("lensgate-pictures", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # Who reads a mapped file past its end is killed (SIGBUS): the engine must not depend on us there.
        fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._free = list(range(max_pictures))  # a heap: the first places are used most, so few are ever used
        self._slots: dict[int, int] = {}
        self._slot_bytes = 0
        self._map: mmap.mmap | None = None

    def hand_over(self, connection: socket.socket) -> None:
        """Say hello on a new connection and pass the memory on."""
        socket.send_fds(connection, [_HELLO], [self._file])

    @property
    def reserved(self) -> bool:
        """True once the places have their size."""
        return self._map is not None

    @property
    def full(self) -> bool:
        """True when there is no place for one more picture."""
        return not self._free

    def reserve(self, picture_bytes: int) -> None:
        """Give the places their size, which is known when the engine has said what its model takes. Once.

        Raises:
            OSError: the system has no room for them, or RLIMIT_FSIZE forbids it for good.
        """
        self._slot_bytes = -(-picture_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        set_size(self._file, self._max_pictures * self._slot_bytes)
        self._map = mmap.mmap(self._file, self._max_pictures * self._slot_bytes)

    def put(self, picture_id: int, pixels: Pixels) -> int:
        """Copy one picture into a free place and return where it begins, in bytes. `reserve` comes first."""
        assert self._map is not None
        slot = heapq.heappop(self._free)
        self._slots[picture_id] = slot
        offset = slot * self._slot_bytes
        self._map[offset : offset + pixels.nbytes] = pixels.data.cast("B")
        return offset

    def free(self, picture_id: int) -> None:
        """The engine has answered: it reads this picture no more."""
        heapq.heappush(self._free, self._slots.pop(picture_id))

    def close(self) -> None:
        """Let go of the memory. The engine may have it a little longer."""
        os.close(self._file)
        if self._map is not None:
            self._map.close()


class ReceivedPictures:
    """The engine's side: reads a worker's pictures where they lie.

    Args:
        file: the worker's, which is ours to close from now on.

    Raises:
        ValueError: the worker could still cut it short, or it is no memory.
    """

    def __init__(self, file: int) -> None:
        self._file: int | None = file
        # Pictures in use hold on to the map that they are in: it is let go, never closed.
        self._map: mmap.mmap | None = None
        try:
            sealed = fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        except OSError:  # no memory at all, but a pipe, say
            sealed = 0
        if not sealed:
            os.close(file)
            raise ValueError("what a worker shares is not sealed memory")

    @classmethod
    async def received(cls, connection: socket.socket) -> Self:
        """Wait for a new connection's hello and take the memory that comes with it.

        Raises:
            TimeoutError, ValueError, OSError: it does not come, or something else does.
        """
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(connection, readable.set)
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_S):
                await readable.wait()
        finally:
            loop.remove_reader(connection)
        _, files, _, _ = socket.recv_fds(connection, len(_HELLO), 1, socket.MSG_CMSG_CLOEXEC)
        if not files:
            raise ValueError("a worker's hello comes without memory for its pictures")
        return cls(files[0])

    def picture(self, offset: int, side: int) -> Pixels:
        """The picture that begins there, `[side, side, 3]`, as a read-only view.

        Raises:
            ValueError: it would end outside the memory.
            OSError: the system has no room to map it.
        """
        picture_bytes = side * side * 3
        # Its worker gives the file its size, once, when it has heard how large pictures are.
        if self._map is None and self._file is not None and os.fstat(self._file).st_size:
            self._map = mmap.mmap(self._file, 0, prot=mmap.PROT_READ)
        if self._map is None or not 0 <= offset <= len(self._map) - picture_bytes:
            raise ValueError("a picture outside its memory")
        return np.frombuffer(self._map, np.uint8, picture_bytes, offset).reshape(side, side, 3)

    def close(self) -> None:
        """Let go of the memory, but for the pictures that are in use. Nothing happens the second time."""
        if self._file is not None:
            os.close(self._file)
        self._file = self._map = None
