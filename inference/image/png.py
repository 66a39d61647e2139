"""PNG's container (W3C PNG, third edition): its size, its checksums, and a copy of the chunks that pixels are made of."""

from __future__ import annotations

import struct
import zlib

from inference.errors import InvalidImage
from inference.image.exif import orientation_of
from inference.image.source import PictureSource, TransparentColour, check_size

SIGNATURE = b"\x89PNG\r\n\x1a\n"

MAX_CHUNKS = 8_192
"""Enough for 64 MB in libpng's chunks of 8 KiB; the walk and Pillow's own then take some 30 ms."""

MAX_SPARE_BYTES = 1 << 16
"""How much longer than its pixels, and an eighth, the image data may be. 10 MB of empty blocks would cost 0.6 s before the first pixel."""

_CHUNK_OVERHEAD = 12  # length, name, checksum
_DEPTHS = (1, 2, 4, 8, 16)
_GREY, _RGB, _PALETTE = 0, 2, 3
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, 4: 2, 6: 4}
_EXIF_BYTES = 65_535  # what a JPEG segment holds


def read_png(data: bytes, max_pixels: int) -> PictureSource:
    """Walk all chunks up to IEND. Animation frames (APNG) and metadata are left out; the default image is the picture.

    Raises:
        ImageTooLarge: see `check_size`.
        InvalidImage: truncated, a wrong checksum, no image data, more than `MAX_CHUNKS` chunks, more data than pixels account for.
    """
    view = memoryview(data)
    if data[8:16] != b"\0\0\0\x0dIHDR" or len(data) < 33:
        raise InvalidImage("The PNG does not begin with its header.")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    check_size(width, height, max_pixels)
    if depth not in _DEPTHS or colour not in _CHANNELS:
        raise InvalidImage("The PNG's bit depth or colour type is not one of PNG's.")
    # A filter byte a row, two where it is interlaced; the fixed Huffman codes take 9 bits for 8 at worst.
    unpacked_bytes = height * ((width * depth * _CHANNELS[colour] + 7) // 8 + 2)
    left_bytes = unpacked_bytes + unpacked_bytes // 8 + MAX_SPARE_BYTES
    kept = [view[:8]]
    seen: set[bytes] = set()
    transparent: TransparentColour | None = None
    orientation = 1
    position = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        name, body = _chunk(view, position)
        end = position + _CHUNK_OVERHEAD + len(body)
        if name == b"IHDR" and name in seen:
            raise InvalidImage("The PNG has a second header.")
        if name == b"IDAT":
            left_bytes -= len(body)
            if left_bytes < 0:
                raise InvalidImage("The PNG has more image data than pixels.")
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            kept.append(view[position:end])
        elif name == b"tRNS" and b"IDAT" not in seen:
            transparent = _transparent(bytes(body[:256]), depth, colour)
        elif name == b"eXIf":
            orientation = orientation_of(bytes(body[:_EXIF_BYTES]))
        seen.add(name)
        position = end
        if name == b"IEND":
            break
    else:
        raise InvalidImage("The PNG has too many chunks.")
    if b"IDAT" not in seen or (colour == _PALETTE and b"PLTE" not in seen):
        raise InvalidImage("The PNG holds no picture.")
    return PictureSource("png", width, height, content=b"".join(kept), orientation=orientation, transparent=transparent)


def _chunk(view: memoryview, position: int) -> tuple[bytes, memoryview]:
    """The name and body of the chunk that begins at `position`, its checksum verified (Pillow skips that of the image data)."""
    if position + _CHUNK_OVERHEAD > len(view):
        raise InvalidImage("The PNG is truncated.")
    (length,) = struct.unpack_from(">I", view, position)
    end = position + 8 + length
    if end + 4 > len(view):
        raise InvalidImage("The PNG is truncated.")
    (checksum,) = struct.unpack_from(">I", view, end)
    if zlib.crc32(view[position + 4 : end]) != checksum:
        raise InvalidImage("The PNG has a wrong checksum.")
    return bytes(view[position + 4 : position + 8]), view[position + 8 : end]


def _transparent(body: bytes, depth: int, colour: int) -> TransparentColour | None:
    """A tRNS chunk (11.3.1.1) in the values that Pillow decodes to: grey below 8 bits is stretched, colour above 8 bits is cut."""
    if colour == _PALETTE:
        return body
    if colour == _GREY and len(body) >= 2:
        top = (1 << depth) - 1
        grey = int.from_bytes(body[:2]) & top
        return grey if depth >= 8 else grey * 255 // top
    if colour == _RGB and len(body) >= 6:
        red, green, blue = (value >> 8 if depth == 16 else value & 0xFF for value in struct.unpack_from(">HHH", body))
        return red, green, blue
    return None
