"""A decoder's process by itself: the test is the worker at the other end of its socket."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import termios
import time
from collections.abc import Callable

import numpy as np
import psutil
from PIL import Image

from inference.decoding.messages import MEMORY_BYTES, Decode, Finished, FromDecoder, Ready, decode_from_decoder
from inference.decoding.start import start_process
from inference.frames import HEADER, frame
from inference.sealed_memory import sealed_memory
from inference.types import Preprocessing
from support.pictures import encode

WAIT_S = 30.0


def said(connection: socket.socket) -> FromDecoder:
    """Its next message."""
    (message_bytes,) = HEADER.unpack(connection.recv(HEADER.size, socket.MSG_WAITALL))
    message: FromDecoder = decode_from_decoder(connection.recv(message_bytes, socket.MSG_WAITALL))
    return message


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def unread_bytes(connection: socket.socket) -> int:
    """How much of what was sent its reader has not taken."""
    found: bytes = fcntl.ioctl(connection, termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", found)[0])


async def test_a_decoder_that_is_halted_amid_a_file_goes_on_with_it() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    file = encode(Image.fromarray(noise), "PNG")
    order = frame(Decode(len(file), 0, 10**6, Preprocessing(resize_px=8, crop_px=8, interpolation="bilinear"), True))
    ours, its = socket.socketpair()
    memory = sealed_memory("decoded", MEMORY_BYTES)
    with ours, its:
        process = await start_process(its.fileno(), memory)
        try:
            ours.settimeout(WAIT_S)
            decoder = psutil.Process(process.pid)
            assert await asyncio.to_thread(said, ours) == Ready()
            ours.sendall(order + file[: len(file) // 2])
            until(lambda: unread_bytes(ours) == 0 and decoder.status() == psutil.STATUS_SLEEPING)
            decoder.suspend()
            until(lambda: decoder.status() == psutil.STATUS_STOPPED)
            decoder.resume()
            until(lambda: decoder.status() == psutil.STATUS_SLEEPING)
            ours.sendall(file[len(file) // 2 :])
            assert await asyncio.to_thread(said, ours) == Finished("png", 300, 300, False)
        finally:
            process.kill()
            await process.wait()
            os.close(memory)
