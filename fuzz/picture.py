"""The picture intake: any bytes are refused in words, or become pixels, in a bounded time."""

from __future__ import annotations

import struct
import time
import traceback
import zlib
from pathlib import Path

import numpy as np

import inference.image
from inference.errors import DecoderExhausted, ImageTooLarge, InferenceError, InvalidImage, UnsupportedImage
from inference.image.intake import _decode, decode
from inference.image.png import SIGNATURE
from inference.types import Preprocessing

PREPROCESSING = Preprocessing(resize_px=32, crop_px=28, interpolation="bilinear")
MAX_PIXELS = 250_000
MAX_CPU_S = 2.0
"""Of this thread, so that a busy machine does not look like a dear picture. An honest picture of this size takes some 3 ms."""

_OWN_FOLDER = Path(inference.image.__file__).parent


def one_input(data: bytes) -> None:
    """Try the bytes as they are and, where they begin like a PNG, with its checksums made right, which no mutation does by chance."""
    _try(data)
    if data.startswith(SIGNATURE):
        _try(repaired_png(data))


def _try(data: bytes) -> None:
    began_s = time.thread_time()
    try:
        image = decode(data, preprocessing=PREPROCESSING, max_pixels=MAX_PIXELS)
    except (UnsupportedImage, ImageTooLarge):
        pass
    except InvalidImage as error:
        if getattr(error, "__notes__", None):
            _blame_the_decoder(data)
    except DecoderExhausted as error:
        raise AssertionError("a small picture took all the memory") from error
    else:
        assert image.pixels.shape == (PREPROCESSING.crop_px, PREPROCESSING.crop_px, 3)
        assert image.pixels.dtype == np.uint8
        assert image.pixels.flags.c_contiguous
        assert image.pixels.flags.writeable
        assert 0 < image.width * image.height <= MAX_PIXELS
    took_s = time.thread_time() - began_s
    assert took_s < MAX_CPU_S, f"the picture took {took_s:.1f} s"


def _blame_the_decoder(data: bytes) -> None:
    """An exception that nobody expected may come out of Pillow, never out of our own lines."""
    try:
        _decode(data, PREPROCESSING, MAX_PIXELS, draft=True)
    except InferenceError:
        return
    except Exception as error:  # the question is where it comes from
        innermost = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if innermost.is_relative_to(_OWN_FOLDER):
            raise


def repaired_png(data: bytes) -> bytes:
    """The PNG with the right checksum behind each chunk whose length fits."""
    repaired = bytearray(data)
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", repaired, end, zlib.crc32(data[position + 4 : end]))
        position = end + 4
    return bytes(repaired)
