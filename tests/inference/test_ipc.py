"""Frames over a real unix socket, however the stream is cut."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.ipc import MAX_MESSAGE_BYTES, FrameProtocol, decode_from_worker


class Feed:
    """Feeds bytes to a protocol as an event loop would, in pieces of chosen sizes."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.protocol = FrameProtocol(self.messages.append, lambda: None)

    def push(self, data: bytes, piece_bytes: int) -> None:
        while data:
            view = self.protocol.get_buffer(-1)
            size = min(len(view), len(data), piece_bytes)
            assert size > 0, "an empty buffer means end of file to the event loop"
            view[:size] = data[:size]
            view.release()
            self.protocol.buffer_updated(size)
            data = data[size:]


def frame(message: bytes) -> bytes:
    return struct.pack("<I", len(message)) + message


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 200_000), min_size=1, max_size=6),
    piece_bytes=st.sampled_from([1, 3, 4, 5, 4096, 65_536, 1_000_000]),
)
def test_messages_come_out_whole_and_in_order_however_the_stream_is_cut(sizes: list[int], piece_bytes: int) -> None:
    if piece_bytes < 4096:
        sizes = [size % 500 for size in sizes]
    expected = [os.urandom(size) for size in sizes]
    feed = Feed()
    feed.push(b"".join(map(frame, expected)), piece_bytes)
    assert feed.messages == expected


def test_a_message_larger_than_the_read_buffer_is_received() -> None:
    message = os.urandom(300_000)
    feed = Feed()
    feed.push(frame(b"x") + frame(message) + frame(b"y"), 50_000)
    assert feed.messages == [b"x", message, b"y"]


async def test_a_frame_that_claims_more_than_the_bound_closes_the_connection(tmp_path: Path) -> None:
    lost = asyncio.Event()
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: FrameProtocol(lambda message: None, lost.set), str(tmp_path / "s"))
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
    writer.write(struct.pack("<I", MAX_MESSAGE_BYTES + 1))
    assert await asyncio.wait_for(reader.read(), 30) == b""
    await asyncio.wait_for(lost.wait(), 30)
    writer.close()
    server.close()


def test_a_worker_message_of_another_shape_is_refused() -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_from_worker(msgspec.msgpack.encode(["predict", "one", 2]))
