"""How messages follow one another on a stream: each is `message_bytes: u32` (little-endian), then that much of MessagePack."""

from __future__ import annotations

import struct
from typing import Final

import msgspec

HEADER: Final = struct.Struct("<I")

_encode: Final = msgspec.msgpack.Encoder().encode


def frame(message: msgspec.Struct) -> bytes:
    """One message as it goes over the wire."""
    encoded = _encode(message)
    return HEADER.pack(len(encoded)) + encoded
