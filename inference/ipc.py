"""The wire between an API worker and an engine on the same host: framed messages (`inference.frames`) on a unix stream socket.

Nothing is pickled, and pixels do not come this way but through shared memory (`inference.picture_memory`). See docs/decisions/0001 and
0005.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal, cast

import msgspec

from inference.frames import HEADER, frame
from inference.types import EngineStatus

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""A status carries every label of its models; nothing else comes near."""
_READ_BUFFER_BYTES: Final = 64 * 1024


class Predict(msgspec.Struct, tag="predict", array_like=True, frozen=True):
    """Run the picture (`[crop, crop, 3]` uint8) that begins at byte `offset` of the shared memory through the model.

    Every prediction is answered exactly once, by `Result` or `Failure`; from then on the engine reads the picture no more.
    """

    id: int
    offset: int
    top_k: int
    deadline_ns: int
    """On `time.monotonic_ns`, which all processes of a host share."""
    client: str
    may_displace: bool = True
    """Where the engine's queue is full, it may take the place of a picture of a client that has more of them there."""


class Cancel(msgspec.Struct, tag="cancel", array_like=True, frozen=True):
    """The caller of prediction `id` has left: do not run it. One that still waits is answered with `cancelled`."""

    id: int


class Result(msgspec.Struct, tag="result", array_like=True, frozen=True):
    """The `top_k` classes of prediction `id`, most probable first."""

    id: int
    class_ids: list[int]
    probabilities: list[float]
    queue_ms: float
    infer_ms: float
    batch_size: int


class Failure(msgspec.Struct, tag="failure", array_like=True, frozen=True):
    """Prediction `id` was not run, or failed; `retry_after_s` goes with `overloaded`."""

    id: int
    kind: Literal["overloaded", "deadline", "unavailable", "failed", "cancelled"]
    retry_after_s: int = 1


class StatusChanged(msgspec.Struct, tag="status", array_like=True, frozen=True):
    """Sent on connection and at every change."""

    status: EngineStatus


FromWorker = Predict | Cancel
FromEngine = Result | Failure | StatusChanged

decode_from_worker: Final = msgspec.msgpack.Decoder(FromWorker).decode
decode_from_engine: Final = msgspec.msgpack.Decoder(FromEngine).decode


class FrameError(Exception):
    """The peer sent what is no frame; the connection cannot go on."""


class FrameProtocol(asyncio.BufferedProtocol):
    """Cuts the stream into messages."""

    def __init__(
        self,
        on_message: Callable[[bytes], None],
        on_lost: Callable[[], None],
        on_made: Callable[[], None] = lambda: None,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_made = on_made
        self._max_message_bytes = max_message_bytes
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray(_READ_BUFFER_BYTES)
        self._filled = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for `send`, and tell the owner."""
        # uvloop's transports are asyncio.Transport by their methods only.
        self._transport = cast("asyncio.Transport", transport)
        self._on_made()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner once; what was half received is dropped."""
        self._transport = None
        self._on_lost()

    def send(self, message: msgspec.Struct) -> bool:
        """Queue one message. False when the connection is gone."""
        return self._write([frame(message)])

    def send_with(self, message: msgspec.Struct, attachment: bytes) -> bool:
        """As `send`, with bytes that follow the message unframed: it says how many."""
        return self._write([frame(message), attachment])

    def _write(self, parts: list[bytes]) -> bool:
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        transport.writelines(parts)
        return True

    def close(self) -> None:
        """Close the connection; `on_lost` follows."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection without sending what still waits; `on_lost` follows."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def unsent_bytes(self) -> int:
        """How much has been written that the system has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def eof_received(self) -> None:
        """The peer will say no more: there is no point in sending it anything."""
        self.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the event loop puts the next bytes."""
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on every message that is now complete."""
        self._filled += nbytes
        try:
            self._cut()
        except FrameError:
            self.abort()

    def _cut(self) -> None:
        start = 0
        while self._filled - start >= HEADER.size:
            (message_bytes,) = HEADER.unpack_from(self._buffer, start)
            if message_bytes > self._max_message_bytes:
                raise FrameError
            body = start + HEADER.size
            if self._filled - body < message_bytes:
                self._make_room(HEADER.size + message_bytes)
                break
            start = body + message_bytes
            self._on_message(bytes(memoryview(self._buffer)[body:start]))
        left = self._filled - start
        if start and left:
            self._buffer[:left] = self._buffer[start : self._filled]
        self._filled = left

    def _make_room(self, frame_bytes: int) -> None:
        # The half-frame starts at `start`, which is about to become 0: room for the whole of it is enough.
        # A new buffer, since the event loop still holds a view of the old one, which therefore cannot be resized.
        if frame_bytes > len(self._buffer):
            grown = bytearray(frame_bytes)
            grown[: len(self._buffer)] = self._buffer
            self._buffer = grown
