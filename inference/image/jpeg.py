"""JPEG's container (ITU-T T.81, annex B): its size, its scans, and a copy without metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator

from inference.errors import InvalidImage
from inference.image.exif import orientation_of
from inference.image.source import PictureSource, check_size

MAX_SEGMENTS = 4_096
"""An honest file has some dozens; the longest colour profile fills 255."""
MAX_SCANS = 32
"""Of a progressive file: libjpeg writes 10, for four inks 18, and optimisers about as many. A scan that changes nothing costs 0.4 ns
a pixel for some 30 bytes; 32 of them 2.3 times what an honest progressive file costs that is as empty (measured: docs/proof.md).
A sequential file has one scan a component at most (T.81, A.2)."""
MAX_TABLE_BYTES = 1 << 16
"""Of all quantisation and Huffman tables: honest ones take 0.5 to 10 kB, and reading them 60 ns a byte."""

_EOI, _SOS = 0xD9, 0xDA
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
_PROGRESSIVE = 0xC2
_FRAMES = (
    0xC0,
    0xC1,
    _PROGRESSIVE,
)  # baseline, extended, progressive; arithmetic and lossless coding, which no browser takes, are left out
_TABLES = (0xC4, 0xDB, 0xDD)  # Huffman tables, quantisation tables, restart interval
_KNOWN = (*_FRAMES, *_TABLES, _SOS, *range(0xE0, 0xF0), 0xFE)  # and applications' segments and comments

# As libjpeg's next_marker: any FF that is not followed by a stuffed zero, a fill byte or a restart number.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SEARCH_WINDOW_BYTES = 1 << 18  # `re` holds the interpreter lock: at most 3 ms at a time, even on 12 MB of FF


def read_jpeg(data: bytes, max_pixels: int) -> PictureSource:
    """Walk the segments of a JPEG file up to its first end-of-image marker, which leaves out MPO's further pictures.

    Raises:
        ImageTooLarge: see `check_size`.
        InvalidImage: truncated, not Huffman-coded DCT, or more segments, scans or tables than an honest file has.
    """
    view = memoryview(data)
    kept = [view[:2]]
    size: tuple[int, int] | None = None
    orientation: int | None = None
    first_scan = scans = max_scans = table_bytes = end = 0
    for code, marker, end in _segments(data):
        if code in _FRAMES:
            if size is not None:
                raise InvalidImage("The JPEG has more than one frame.")
            width, height, components = _frame_header(data[marker:end])
            size = (width, height)
            check_size(*size, max_pixels)
            max_scans = MAX_SCANS if code == _PROGRESSIVE else components
        elif code == _SOS:
            if size is None:
                raise InvalidImage("The JPEG's scan comes before its frame.")
            first_scan = first_scan or marker
            scans += 1
            if scans > max_scans:
                raise InvalidImage("The JPEG has too many scans.")
        elif code in _TABLES:
            table_bytes += end - marker
            if table_bytes > MAX_TABLE_BYTES:
                raise InvalidImage("The JPEG has too many tables.")
        elif code == _APP1 and orientation is None and data.startswith(b"Exif\0\0", marker + 4):
            orientation = orientation_of(data[marker + 4 : end])
        if not first_scan and (code in _FRAMES or code in _TABLES or _tells_colour_space(data, code, marker)):
            kept.append(view[marker:end])
    if size is None or not scans:
        raise InvalidImage("The JPEG holds no picture.")
    kept.append(view[first_scan:end])
    return PictureSource("jpeg", *size, content=b"".join(kept), orientation=orientation or 1)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Each segment's code, where its marker begins and where it ends; the last is the end of the image."""
    end = 2
    for _ in range(MAX_SEGMENTS):
        marker = _next_marker(data, end)
        code = data[marker + 1]
        if code == _EOI:
            yield code, marker, marker + 2
            return
        if code not in _KNOWN:
            raise InvalidImage("The JPEG is of a kind that is not supported.")
        length = int.from_bytes(data[marker + 2 : marker + 4])
        end = marker + 2 + length
        if length < 2 or end > len(data):
            raise InvalidImage("The JPEG is truncated.")
        yield code, marker, end
    raise InvalidImage("The JPEG has too many segments.")


def _next_marker(data: bytes, position: int) -> int:
    for start in range(position, len(data), _SEARCH_WINDOW_BYTES):
        found = _MARKER.search(data, start, start + _SEARCH_WINDOW_BYTES + 1)
        if found:
            return found.start()
    raise InvalidImage("The JPEG is truncated.")


def _frame_header(segment: bytes) -> tuple[int, int, int]:
    """Width, height and number of components from a frame header (B.2.2), its marker included."""
    if len(segment) < 10:
        raise InvalidImage("The JPEG's frame header is too short.")
    return int.from_bytes(segment[7:9]), int.from_bytes(segment[5:7]), segment[9]


def _tells_colour_space(data: bytes, code: int, marker: int) -> bool:
    """JFIF and Adobe segments decide between YCbCr and RGB, CMYK and YCCK (ITU-T T.871; Adobe technical note 5116)."""
    return (code == _APP0 and data.startswith(b"JFIF\0", marker + 4)) or (code == _APP14 and data.startswith(b"Adobe", marker + 4))
