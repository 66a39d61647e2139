"""Broken pictures get the documented errors and nothing else, whatever the bytes (attacks 79, 80)."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import _imaging

from inference.errors import ImageTooLarge, InferenceError, InvalidImage, UnsupportedImage
from inference.image import decode
from inference.types import Preprocessing
from support.pictures import (
    PNG_SIGNATURE,
    animation,
    cmyk_jpeg,
    encode,
    gradient,
    jpeg_header,
    jpeg_segment,
    oriented,
    photo,
    png_chunk,
    png_header,
    progressive_jpeg,
    webp_canvas,
    webp_chunk,
    webp_file,
    with_bad_checksum,
    without_image_data,
)

SMALL_CARD = Preprocessing(resize_px=32, crop_px=28, interpolation="bilinear")
MAX_PIXELS = 100_000
PHOTO = photo().resize((120, 80))
WHOLE: dict[str, bytes] = {
    "jpeg": encode(PHOTO, "JPEG"),
    "progressive jpeg": progressive_jpeg(PHOTO),
    "cmyk jpeg": cmyk_jpeg(PHOTO),
    "oriented jpeg": oriented(PHOTO, 6, "JPEG"),
    "png": encode(PHOTO, "PNG"),
    "palette png": encode(PHOTO.quantize(16), "PNG", transparency=bytes(range(16))),
    "16-bit png": encode(PHOTO.convert("I;16"), "PNG"),
    "animated png": animation([PHOTO, gradient(120, 80)], "PNG"),
    "webp": encode(PHOTO, "WEBP"),
    "lossless webp": encode(PHOTO.convert("RGBA"), "WEBP", lossless=True),
    "oriented webp": oriented(PHOTO, 6, "WEBP"),
    "animated webp": animation([PHOTO, gradient(120, 80)], "WEBP"),
}


def check(data: bytes) -> str:
    """Decode; give the name of the documented outcome, and let any other escape."""
    try:
        result = decode(data, preprocessing=SMALL_CARD, max_pixels=MAX_PIXELS)
    except (UnsupportedImage, InvalidImage, ImageTooLarge) as error:
        return type(error).__name__
    assert result.pixels.shape == (28, 28, 3)
    assert result.width * result.height <= MAX_PIXELS
    return "decoded"


@pytest.mark.parametrize("name", WHOLE)
def test_the_pictures_of_this_file_are_whole(name: str) -> None:
    assert check(WHOLE[name]) == "decoded"


@pytest.mark.parametrize("name", WHOLE)
def test_79_a_truncated_picture_is_invalid_wherever_it_ends(name: str) -> None:
    data = WHOLE[name]
    for share in (0.2, 0.5, 0.9, 0.99):
        assert check(data[: int(len(data) * share)]) == "InvalidImage"
    assert check(data[:-2]) == "InvalidImage"


@pytest.mark.parametrize("chunk", [b"IHDR", b"IDAT", b"IEND"])
def test_79_a_png_with_a_wrong_checksum_is_invalid(chunk: bytes) -> None:
    assert check(with_bad_checksum(WHOLE["png"], chunk)) == "InvalidImage"


PIECES: dict[str, bytes] = {
    "PNG without image data": without_image_data(WHOLE["png"]),
    "PNG with empty image data": png_header(9, 9) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""),
    "PNG with broken image data": png_header(9, 9) + png_chunk(b"IDAT", b"x" * 99) + png_chunk(b"IEND", b""),
    "PNG whose packed data breaks off": png_header(9, 9)
    + png_chunk(b"IDAT", zlib.compress(np.random.default_rng(0).bytes(252))[:99])
    + png_chunk(b"IEND", b""),
    "PNG without an end": png_header(9, 9) + png_chunk(b"IDAT", zlib.compress(bytes(28 * 9))),
    "PNG of a palette that is not there": png_header(9, 9, 8, 3) + png_chunk(b"IDAT", zlib.compress(bytes(90))) + png_chunk(b"IEND", b""),
    "PNG of an unknown depth": png_header(9, 9, 0, 0)
    + png_chunk(b"tRNS", b"\0\0")
    + png_chunk(b"IDAT", zlib.compress(bytes(90)))
    + png_chunk(b"IEND", b""),
    "PNG of an unknown colour": png_header(9, 9, 8, 5) + png_chunk(b"IDAT", zlib.compress(bytes(90))) + png_chunk(b"IEND", b""),
    "PNG of an unknown filter": png_header(9, 9) + png_chunk(b"IDAT", zlib.compress(b"\x09" * 252)) + png_chunk(b"IEND", b""),
    "PNG signature alone": PNG_SIGNATURE,
    "PNG that begins with another chunk": PNG_SIGNATURE + png_chunk(b"tEXt", b"a\0b") + WHOLE["png"][8:],
    "PNG chunk as long as can be": WHOLE["png"][:33] + struct.pack(">I", 2**32 - 1) + b"IDAT" + bytes(99),
    "JPEG start alone": b"\xff\xd8\xff",
    "JPEG header alone": jpeg_header(9, 9),
    "JPEG of no picture": b"\xff\xd8\xff\xd9",
    "JPEG frame without a scan": jpeg_header(9, 9) + b"\xff\xd9",
    "JPEG scan before its frame": b"\xff\xd8" + jpeg_segment(0xDA, b"\1\1\0\0\x3f\0") + b"\xff\xd9",
    "JPEG without tables": jpeg_header(9, 9) + jpeg_segment(0xDA, b"\3\1\0\2\0\3\0\0\x3f\0") + b"\0\xff\xd9",
    "JPEG frame of two bytes": b"\xff\xd8" + jpeg_segment(0xC0, b"\x08\0") + b"\xff\xd9",
    "JPEG segment of no length": b"\xff\xd8\xff\xe0\0\0" + WHOLE["jpeg"][2:],
    "arithmetic JPEG": WHOLE["jpeg"].replace(b"\xff\xc0", b"\xff\xc9"),
    "lossless JPEG": WHOLE["jpeg"].replace(b"\xff\xc0", b"\xff\xc3"),
    "12-bit JPEG": WHOLE["jpeg"].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"),
    "WebP head alone": b"RIFF\x04\0\0\0WEBP",
    "WebP of another first chunk": webp_file(webp_chunk(b"XMP ", bytes(40))),
    "WebP canvas alone": webp_file(webp_canvas(9, 9)),
    "WebP animation without a frame": webp_file(webp_canvas(9, 9, 2), webp_chunk(b"ANIM", bytes(6))),
    "WebP without its start code": webp_file(webp_chunk(b"VP8 ", bytes(40))),
    "WebP of zeros": webp_file(webp_canvas(9, 9), webp_chunk(b"VP8L", bytes(40))),
}


@pytest.mark.parametrize("name", PIECES)
def test_79_what_begins_like_a_picture_and_is_none_is_invalid(name: str) -> None:
    assert check(PIECES[name]) == "InvalidImage"


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), OSError("x"), SyntaxError("x"), IndexError("x"), RecursionError("x"), ZeroDivisionError("x"), UserWarning("x")],
)
def test_80_whatever_the_decoder_raises_the_picture_is_invalid(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", broken)
    assert check(WHOLE["jpeg"]) == "InvalidImage"


@pytest.mark.parametrize("data", [*PIECES.values(), b"secret", PNG_SIGNATURE + b"secret" * 20, b"\xff\xd8\xffsecret"])
def test_no_message_holds_what_the_caller_sent_or_where_the_code_lives(data: bytes) -> None:
    with pytest.raises(InferenceError) as caught:
        decode(data, preprocessing=SMALL_CARD, max_pixels=MAX_PIXELS)
    message = str(caught.value)
    assert message.endswith(".")
    assert not [part for part in ("secret", "/", "PIL", "0x", "b'") if part in message]


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_only_the_documented_errors(data: bytes) -> None:
    check(data)


@given(
    st.sampled_from([b"\xff\xd8\xff", PNG_SIGNATURE, b"RIFF\x40\0\0\0WEBPVP8X", png_header(9, 9), jpeg_header(9, 9)]),
    st.binary(max_size=200),
)
def test_arbitrary_bytes_behind_a_true_beginning_raise_only_the_documented_errors(start: bytes, rest: bytes) -> None:
    check(start + rest)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_a_mutated_picture_raises_only_the_documented_errors_and_stays_in_bounds(name: str, draw: st.DataObject) -> None:
    data = bytearray(WHOLE[name])
    at = st.integers(0, min(len(data) - 1, 1_500))
    for position, value in draw.draw(st.lists(st.tuples(at, st.integers(0, 255)), min_size=1, max_size=8)):
        data[position] = value
    cut, end = draw.draw(at), draw.draw(st.integers(0, 60))
    if draw.draw(st.booleans()):
        del data[cut : cut + end]
    if name.endswith("png"):
        data = with_true_checksums(data)
    before = int(_imaging.get_stats()["allocated_blocks"])
    check(bytes(data))
    # A block is 16 MiB (Pillow's arena); a picture within the bound, its copies included, fits in a few.
    assert int(_imaging.get_stats()["allocated_blocks"]) - before <= 8


def with_true_checksums(data: bytearray) -> bytearray:
    """So that the mutation reaches what lies behind the checksum."""
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        if at + 12 + length > len(data):
            break
        data[at + 8 + length : at + 12 + length] = struct.pack(">I", zlib.crc32(data[at + 4 : at + 8 + length]))
        at += 12 + length
    return data
