"""The one EXIF tag that changes what a picture shows, read without trusting the rest."""

from __future__ import annotations

import struct

MAX_ENTRIES = 512
"""Tags looked at in IFD0; cameras write fewer than 50."""

_PREFIX = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_ENTRY_BYTES = 12
_VALUE_FORMATS = {1: "B", 3: "H", 4: "I"}  # BYTE, SHORT (what the standard asks for) and LONG (what some programs write)


def orientation_of(exif: bytes) -> int:
    """The orientation, 1 to 8, in an EXIF block (CIPA DC-008, 4.6.4), with or without its `Exif` prefix.

    Absent, broken and out-of-range values are 1: a picture with bad metadata is still a picture.
    """
    tiff = exif.removeprefix(_PREFIX).removeprefix(_PREFIX)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(order + "H", tiff, start)
    present = (len(tiff) - start - 2) // _ENTRY_BYTES
    for index in range(min(count, present, MAX_ENTRIES)):
        entry = start + 2 + index * _ENTRY_BYTES
        tag, kind, values = struct.unpack_from(order + "HHI", tiff, entry)
        if tag == _ORIENTATION_TAG:
            if kind not in _VALUE_FORMATS or values != 1:
                return 1
            (value,) = struct.unpack_from(order + _VALUE_FORMATS[kind], tiff, entry + 8)
            return int(value) if 1 <= value <= 8 else 1
    return 1
