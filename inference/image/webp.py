"""WebP's container (RFC 9649): its size, and a copy that holds the first frame only."""

from __future__ import annotations

import struct
from typing import NamedTuple

from inference.errors import InvalidImage
from inference.image.exif import orientation_of
from inference.image.source import PictureSource, check_size

MAX_CHUNKS = 8_192
"""Frames of an animation are chunks too; the walk takes some 10 ms at most."""

_ALPHA, _ANIMATION = 0x10, 0x02  # flags of VP8X (section 2.7)
_EXIF_BYTES = 65_535  # what a JPEG segment holds


class _Chunk(NamedTuple):
    name: bytes
    body: memoryview
    whole: memoryview
    """Header, body and padding byte."""


def read_webp(data: bytes, max_pixels: int) -> PictureSource:
    """Walk the chunks of a WebP file.

    Raises:
        ImageTooLarge: see `check_size`.
        InvalidImage: truncated, no image data, more than `MAX_CHUNKS` chunks.
    """
    width, height = _canvas(data[12:16], data[20:30])
    check_size(width, height, max_pixels)
    file_bytes = 8 + int.from_bytes(data[4:8], "little")
    if file_bytes > len(data):
        raise InvalidImage("The WebP is truncated.")
    view = memoryview(data)[:file_bytes]
    first = _chunk(view, 12)
    chunks, exif = _first_frame(view) if first.name == b"VP8X" else ([first.whole], b"")
    size = len(b"WEBP") + sum(map(len, chunks))
    content = b"".join([b"RIFF", size.to_bytes(4, "little"), b"WEBP", *chunks])
    return PictureSource("webp", width, height, content=content, orientation=orientation_of(exif))


def _canvas(name: bytes, body: bytes) -> tuple[int, int]:
    """Width and height that the first chunk promises."""
    if name == b"VP8X" and len(body) >= 10:  # section 2.7
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if name == b"VP8 " and len(body) >= 10 and body[3:6] == b"\x9d\x01\x2a":  # RFC 6386, section 9.1
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if name == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:  # section 3.4
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    raise InvalidImage("The WebP does not begin with a picture's header.")


def _first_frame(view: memoryview) -> tuple[list[bytes | memoryview], bytes]:
    """The chunks of an extended file that make its first frame, and its EXIF block."""
    animated = bool(view[20] & _ANIMATION)
    # What a first frame leaves uncovered is transparent, even where no frame has an alpha channel of its own.
    flags = _ANIMATION | _ALPHA if animated else view[20] & _ALPHA
    wanted = (b"ANIM", b"ANMF") if animated else (b"ALPH", b"VP8 ", b"VP8L")
    # The promised size is that of the first VP8X chunk, which is what `_canvas` read; libwebp holds the frame to it.
    chunks: dict[bytes, bytes | memoryview] = {b"VP8X": bytes([*view[12:20], flags, *view[21:30]])}
    exif = b""
    position = 30
    for _ in range(MAX_CHUNKS):
        if position >= len(view):
            break
        chunk = _chunk(view, position)
        position += len(chunk.whole)
        if chunk.name in wanted:
            chunks.setdefault(b"VP8 " if chunk.name == b"VP8L" else chunk.name, chunk.whole)
        elif chunk.name == b"EXIF":
            exif = bytes(chunk.body[:_EXIF_BYTES])
    else:
        raise InvalidImage("The WebP has too many chunks.")
    if not chunks.keys() & {b"ANMF", b"VP8 "}:
        raise InvalidImage("The WebP holds no picture.")
    return list(chunks.values()), exif


def _chunk(view: memoryview, position: int) -> _Chunk:
    """The RIFF chunk (section 2.3) that begins at `position`."""
    if position + 8 > len(view):
        raise InvalidImage("The WebP is truncated.")
    (length,) = struct.unpack_from("<I", view, position + 4)
    end = position + 8 + length
    if end > len(view):
        raise InvalidImage("The WebP is truncated.")
    return _Chunk(bytes(view[position : position + 4]), view[position + 8 : end], view[position : min(end + length % 2, len(view))])
