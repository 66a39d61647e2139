"""What runs in a decoder (`python -m inference.decoding.process`): one picture after the other, until the worker that started it is gone.

It is given a socket and a piece of memory, by the numbers of their descriptors, and the worker's process id. It has no setting, no secret
and no database.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Final

from inference.allocator import keep_a_picture
from inference.decoding.messages import (
    BEGUN,
    BEGUN_OFFSET,
    MAX_TRACE,
    PLACE_BYTES,
    Decode,
    Failed,
    Finished,
    FromDecoder,
    Ready,
    Refused,
    decode_from_worker,
)
from inference.errors import InferenceError
from inference.frames import HEADER, frame
from inference.garbage import keep_what_exists
from inference.image import decode

_PR_SET_PDEATHSIG: Final = 1
"""`<sys/prctl.h>`; PR_SET_PDEATHSIG(2const)."""


class _WorkerGone(Exception):
    """The other end of the socket is closed."""


def main() -> None:
    """Decode until the other end of the socket closes, or the worker dies."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # sent to all processes of a group: the worker still wants its pictures
        signal.signal(number, signal.SIG_IGN)
    if not _die_with(int(sys.argv[3])):
        return
    socket_file, memory_file = int(sys.argv[1]), int(sys.argv[2])
    _close_all_but(socket_file, memory_file)
    connection = socket.socket(fileno=socket_file)
    memory = mmap.mmap(memory_file, 0)
    os.close(memory_file)  # the map has its own
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash must not leave somebody's picture on a disk
    keep_a_picture()
    keep_what_exists()
    _close_off()
    with contextlib.suppress(_WorkerGone, BrokenPipeError, ConnectionResetError):
        connection.sendall(frame(Ready()))
        while True:
            _decode_next(connection, memory)


def _die_with(worker: int) -> bool:
    """Have the system kill us when that process dies, also in the middle of a picture; False where it is dead already."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == worker


def _close_all_but(*files: int) -> None:
    """Let go of whatever else was passed down by mistake; standard streams stay."""
    for file in [int(link.name) for link in Path("/proc/self/fd").iterdir()]:
        if file > 2 and file not in files:
            with contextlib.suppress(OSError):  # the one of the listing itself
                os.close(file)


def _close_off() -> None:
    """Have the system refuse us every further descriptor, process and thread (setrlimit(2)).

    A picture that takes its decoder over finds it with one socket and one piece of memory: it can read no file and reach nobody. What needs
    no descriptor it can still do: delete files by name, end processes, become another program. Root may lift these limits again.
    """
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))


def _decode_next(connection: socket.socket, memory: mmap.mmap) -> None:
    (message_bytes,) = HEADER.unpack(_received(connection, HEADER.size))
    job = decode_from_worker(_received(connection, message_bytes))
    file = _received(connection, job.file_bytes)
    (begun,) = BEGUN.unpack_from(memory, BEGUN_OFFSET)
    BEGUN.pack_into(memory, BEGUN_OFFSET, begun + 1)
    connection.sendall(frame(_answer(job, file, memory)))


def _received(connection: socket.socket, length: int) -> bytes:
    """Exactly so many bytes."""
    data = b""
    while len(data) < length:  # a call for all of them is cut short by SIGCONT, a debugger or a container's freezer
        more = connection.recv(length - len(data), socket.MSG_WAITALL)
        if not more:
            raise _WorkerGone
        data += more  # `more` itself, the first time
    return data


def _answer(job: Decode, file: bytes, memory: mmap.mmap) -> FromDecoder:
    try:
        image = decode(file, preprocessing=job.preprocessing, max_pixels=job.max_pixels, draft=job.draft)
        place = memoryview(memory)[job.offset : job.offset + PLACE_BYTES]
        place[: image.pixels.nbytes] = image.pixels.data.cast("B")  # a ValueError where there is no room for it
    except InferenceError as error:
        return Refused(type(error).__name__, str(error), [note[:MAX_TRACE] for note in getattr(error, "__notes__", ())])  # type: ignore[arg-type]  # decode's four
    except Exception as error:  # noqa: BLE001 # the worker raises it again
        return Failed(f"{type(error).__name__}: {error}"[:MAX_TRACE], traceback.format_exc()[-MAX_TRACE:])
    return Finished(image.format, image.width, image.height, image.drafted)


if __name__ == "__main__":
    main()
