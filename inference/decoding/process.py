"""What runs in a decoder (`python -m inference.decoding.process`): one picture after the other, until the worker that started it is gone.

It is given a socket and a piece of memory, by the numbers of their descriptors, and has nothing else: no setting, no secret, no database.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import socket
import sys
import traceback

from inference.allocator import return_large_blocks
from inference.decoding.messages import PLACE_BYTES, Decode, Failed, Finished, FromDecoder, Ready, Refused, decode_from_worker
from inference.errors import InferenceError
from inference.frames import HEADER, frame
from inference.garbage import keep_what_exists
from inference.image import decode


class _WorkerGone(Exception):
    """The other end of the socket is closed."""


def main() -> None:
    """Decode until the other end of the socket closes."""
    socket_file, memory_file = int(sys.argv[1]), int(sys.argv[2])
    _close_all_but(socket_file, memory_file)
    connection = socket.socket(fileno=socket_file)
    memory = mmap.mmap(memory_file, 0)
    os.close(memory_file)  # the map has its own
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash must not leave somebody's picture on a disk
    return_large_blocks()
    keep_what_exists()
    with contextlib.suppress(_WorkerGone, BrokenPipeError, ConnectionResetError):
        connection.sendall(frame(Ready()))
        while True:
            _decode_next(connection, memory)


def _close_all_but(*files: int) -> None:
    """Let go of whatever else was passed down by mistake; standard streams stay."""
    first = 3
    for file in sorted(files):
        os.closerange(first, file)
        first = file + 1
    os.closerange(first, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _decode_next(connection: socket.socket, memory: mmap.mmap) -> None:
    (message_bytes,) = HEADER.unpack(_received(connection, HEADER.size))
    job = decode_from_worker(_received(connection, message_bytes))
    connection.sendall(frame(_answer(job, _received(connection, job.file_bytes), memory)))


def _received(connection: socket.socket, length: int) -> bytearray:
    """Exactly so many bytes."""
    data = bytearray(length)
    view, filled = memoryview(data), 0
    while filled < length:
        count = connection.recv_into(view[filled:])
        if not count:
            raise _WorkerGone
        filled += count
    return data


def _answer(job: Decode, file: bytearray, memory: mmap.mmap) -> FromDecoder:
    try:
        image = decode(memoryview(file), preprocessing=job.preprocessing, max_pixels=job.max_pixels)
        place = memoryview(memory)[job.offset : job.offset + PLACE_BYTES]
        place[: image.pixels.nbytes] = image.pixels.data.cast("B")  # a ValueError where there is no room for it
    except InferenceError as error:
        return Refused(type(error).__name__, str(error), list(getattr(error, "__notes__", ())))  # type: ignore[arg-type]  # decode's four
    except Exception as error:  # noqa: BLE001 # the worker raises it again
        return Failed(f"{type(error).__name__}: {error}", traceback.format_exc())
    return Finished(image.format, image.width, image.height)


if __name__ == "__main__":
    main()
