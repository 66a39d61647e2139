"""What an API worker and a decoder say to one another: frames as `inference.ipc` cuts them, on a pair of sockets that only they have."""

from __future__ import annotations

import struct
from typing import Annotated, Final, Literal

import msgspec

from inference.errors import DecoderExhausted, ImageTooLarge, InvalidImage, UnsupportedImage
from inference.image.source import MAX_SIDE_PX, PictureFormat
from inference.types import Preprocessing

PLACE_BYTES: Final = 16 * 1024 * 1024
"""Room for one picture's pixels, `[crop_px, crop_px, 3]`, for a crop of up to 2,364 pixels. What is never written takes no memory."""
PLACES: Final = 2
"""How many pictures one decoder holds at once: one is decoded and one waits, so that it never has to wait for the worker."""
BEGUN: Final = struct.Struct("<Q")
"""How many pictures the decoder has begun with. It stands behind the places, so that it can be read when the decoder has died."""
BEGUN_OFFSET: Final = PLACES * PLACE_BYTES
MEMORY_BYTES: Final = BEGUN_OFFSET + BEGUN.size
MAX_MESSAGE_BYTES: Final = 32 * 1024
"""Of what a decoder says."""
MAX_TRACE: Final = 8_000
"""Of a stack trace, in characters: its end is kept."""

_Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE_PX)]

REFUSALS: Final = {error.__name__: error for error in (UnsupportedImage, ImageTooLarge, InvalidImage, DecoderExhausted)}


class Decode(msgspec.Struct, array_like=True, frozen=True):
    """Decode the file that follows this message and put its pixels at byte `offset` of the shared memory."""

    file_bytes: int
    offset: int
    max_pixels: int
    preprocessing: Preprocessing
    draft: bool


class Ready(msgspec.Struct, tag="ready", array_like=True, frozen=True):
    """Said once, at the start."""


class Finished(msgspec.Struct, tag="finished", array_like=True, frozen=True):
    """The pixels are there; and what the picture was, as `inference.image.DecodedImage`."""

    format: PictureFormat
    width: _Side
    height: _Side
    drafted: bool


class Refused(msgspec.Struct, tag="refused", array_like=True, frozen=True):
    """The picture is to blame, or memory; see `inference.image.decode`."""

    kind: Literal["UnsupportedImage", "ImageTooLarge", "InvalidImage", "DecoderExhausted"]
    message: Annotated[str, msgspec.Meta(max_length=300)]
    notes: Annotated[list[str], msgspec.Meta(max_length=2)]


class Failed(msgspec.Struct, tag="failed", array_like=True, frozen=True):
    """We are to blame: an exception that nobody expects, and its stack trace without the values of any variable."""

    error: str
    trace: str


FromDecoder = Ready | Finished | Refused | Failed
"""Every `Decode` is answered once, in order."""

decode_from_worker: Final = msgspec.msgpack.Decoder(Decode).decode
decode_from_decoder: Final = msgspec.msgpack.Decoder(FromDecoder).decode
