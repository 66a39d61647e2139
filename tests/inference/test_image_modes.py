"""What a picture's bytes may be, and that its colours come out the same whatever the encoding (attacks 74, 81, 83)."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from PIL import Image

from inference.errors import UnsupportedImage
from inference.image import DecodedImage, decode
from inference.types import Pixels, Preprocessing
from support.pictures import (
    NOT_PICTURES,
    animation,
    cmyk_jpeg,
    encode,
    foreign_pictures,
    mpo,
    photo,
    png,
    png_chunk,
    png_header,
    progressive_jpeg,
    webp_bitstream,
    webp_canvas,
    webp_chunk,
    webp_file,
    ycck_jpeg,
)

RESNET50 = Preprocessing(resize_px=232, crop_px=224, interpolation="bilinear")
PHOTO = photo()
RGB = np.asarray(PHOTO)
GREY = np.asarray(PHOTO.convert("L"))


def decoded(data: bytes) -> DecodedImage:
    return decode(data, preprocessing=RESNET50, max_pixels=10_000_000)


def pixels_of(image: Image.Image) -> Pixels:
    """The pixels of the 8-bit RGB original, stored without loss."""
    return decoded(encode(image.convert("RGB"), "PNG")).pixels


def mean_difference(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


@pytest.mark.parametrize("name", NOT_PICTURES)
def test_what_begins_like_no_picture_is_unsupported(name: str) -> None:
    with pytest.raises(UnsupportedImage):
        decoded(NOT_PICTURES[name])


@pytest.mark.parametrize("name", foreign_pictures())
def test_a_picture_in_another_format_is_unsupported(name: str) -> None:
    with pytest.raises(UnsupportedImage):
        decoded(foreign_pictures()[name])


@pytest.mark.parametrize(("name", "expected"), [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp")])
def test_format_and_original_size_are_told(name: str, expected: str) -> None:
    result = decoded(encode(PHOTO, name))
    assert (result.format, result.width, result.height) == (expected, 600, 400)


def test_pixels_are_a_contiguous_writable_uint8_square() -> None:
    pixels = decoded(encode(PHOTO, "JPEG")).pixels
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


def test_a_memoryview_is_as_good_as_bytes() -> None:
    data = encode(PHOTO, "PNG")
    view = memoryview(b"x" + data + b"x")[1:-1]
    assert np.array_equal(decode(view, preprocessing=RESNET50, max_pixels=10**6).pixels, decoded(data).pixels)


def grey_alpha(grey: int, alpha: int) -> Image.Image:
    return Image.merge("LA", [Image.new("L", PHOTO.size, grey), Image.new("L", PHOTO.size, alpha)])


LOSSLESS: dict[str, tuple[bytes, Image.Image]] = {
    "RGB": (encode(PHOTO, "PNG"), PHOTO),
    "RGBA, opaque": (encode(PHOTO.convert("RGBA"), "PNG"), PHOTO),
    "LA, opaque": (encode(PHOTO.convert("LA"), "PNG"), PHOTO.convert("L")),
    "L": (encode(PHOTO.convert("L"), "PNG"), PHOTO.convert("L")),
    "1": (encode(PHOTO.convert("1"), "PNG"), PHOTO.convert("1")),
    "P": (encode(PHOTO.quantize(64), "PNG"), PHOTO.quantize(64)),
    "P of 4 bits": (encode(PHOTO.quantize(16), "PNG", bits=4), PHOTO.quantize(16)),
    "16-bit grey": (png(GREY.astype(np.uint16) * 257, 0), PHOTO.convert("L")),
    "16-bit RGB": (png(RGB.astype(np.uint16) * 257, 2), PHOTO),
    "16-bit RGBA": (png(np.dstack([RGB, np.full_like(GREY, 255)]).astype(np.uint16) * 257, 6), PHOTO),
    "16-bit LA": (png(np.dstack([GREY, np.full_like(GREY, 255)]).astype(np.uint16) * 257, 4), PHOTO.convert("L")),
    "with a colour profile": (encode(PHOTO, "PNG", icc_profile=b"not a profile" * 50), PHOTO),
    "lossless WebP": (encode(PHOTO, "WEBP", lossless=True), PHOTO),
    "lossless WebP with alpha": (encode(PHOTO.convert("RGBA"), "WEBP", lossless=True), PHOTO),
}


@pytest.mark.parametrize("mode", LOSSLESS)
def test_81_every_lossless_mode_gives_exactly_the_pixels_of_its_rgb_original(mode: str) -> None:
    data, original = LOSSLESS[mode]
    assert np.array_equal(decoded(data).pixels, pixels_of(original))


LOSSY: dict[str, bytes] = {
    "JPEG": encode(PHOTO, "JPEG", quality=95),
    "progressive JPEG": progressive_jpeg(PHOTO, 95),
    "CMYK JPEG": cmyk_jpeg(PHOTO),
    "YCCK JPEG": ycck_jpeg(PHOTO),
    "RGB JPEG without YCbCr": encode(PHOTO, "JPEG", quality=95, keep_rgb=True),
    "lossy WebP": encode(PHOTO, "WEBP", quality=95),
    "lossy WebP with alpha": encode(PHOTO.convert("RGBA"), "WEBP", quality=95),
}


@pytest.mark.parametrize("mode", LOSSY)
def test_81_every_lossy_mode_is_within_two_levels_of_its_rgb_original(mode: str) -> None:
    assert mean_difference(decoded(LOSSY[mode]).pixels, pixels_of(PHOTO)) < 2


def test_81_a_grey_jpeg_is_grey_in_all_three_bands() -> None:
    pixels = decoded(encode(PHOTO.convert("L"), "JPEG", quality=95)).pixels
    assert mean_difference(pixels, pixels_of(PHOTO.convert("L"))) < 2
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_81_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256 * 256).astype(np.uint16).reshape(256, 256)
    expected = Image.fromarray((ramp >> 8).astype(np.uint8))
    assert np.array_equal(decoded(png(ramp, 0)).pixels, pixels_of(expected))


def on_white(alpha: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Image.Image:
    share = alpha[..., None].astype(float) / 255
    return Image.fromarray(np.round(RGB * share + 255 * (1 - share)).astype(np.uint8))


@pytest.mark.parametrize("format_name", ["PNG", "WEBP"])
def test_81_alpha_is_composited_on_white(format_name: str) -> None:
    alpha = np.broadcast_to(np.linspace(0, 255, 600).astype(np.uint8), (400, 600))
    image = PHOTO.copy()
    image.putalpha(Image.fromarray(alpha))
    data = encode(image, format_name, lossless=True, exact=True)
    assert mean_difference(decoded(data).pixels, pixels_of(on_white(alpha))) < 0.1


def test_81_grey_with_alpha_is_composited_on_white() -> None:
    image = grey_alpha(0, 51)
    assert (decoded(encode(image, "PNG")).pixels == 204).all()


def test_81_a_palette_with_transparency_shows_white_and_not_the_hidden_colour() -> None:
    image = PHOTO.quantize(32)
    alphas = bytes([0] * 8 + [128] * 8 + [255] * 16)
    expected = image.copy()
    expected.info["transparency"] = alphas
    white = Image.new("RGB", image.size, "white")
    rgba = expected.convert("RGBA")
    white.paste(rgba, mask=rgba)
    assert mean_difference(decoded(encode(image, "PNG", transparency=alphas)).pixels, pixels_of(white)) < 0.1


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_81_a_transparent_grey_below_eight_bits_shows_white(depth: int) -> None:
    rows = zlib.compress((b"\0" + b"\0" * (300 * depth // 8 + 1)) * 300)
    black = png_header(300, 300, depth, 0) + png_chunk(b"tRNS", b"\0\0") + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    assert (decoded(black).pixels == 255).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_81_a_transparent_grey_shows_white_and_the_others_stay(bits: int) -> None:
    samples = np.full((300, 300), 100 * 257 >> (16 - bits), np.uint16 if bits == 16 else np.uint8)
    samples[:, 150:] = 7
    data = png(samples, 0, before=png_chunk(b"tRNS", b"\0\7"))
    pixels = decoded(data).pixels
    assert (pixels[:, :100] == 100).all()
    assert (pixels[:, -100:] == 255).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_81_a_transparent_colour_shows_white_and_the_others_stay(bits: int) -> None:
    samples = np.zeros((300, 300, 3), np.uint16 if bits == 16 else np.uint8)
    samples[:, :150] = np.array([1, 2, 3]) * (257 if bits == 16 else 1)
    key = np.array([1, 2, 3], ">u2") * (257 if bits == 16 else 1)
    pixels = decoded(png(samples, 2, before=png_chunk(b"tRNS", key.astype(">u2").tobytes()))).pixels
    assert (pixels[:, :100] == 255).all()
    assert (pixels[:, -100:] == 0).all()


@pytest.mark.parametrize("format_name", ["PNG", "WEBP"])
def test_83_of_an_animation_the_first_frame_is_taken(format_name: str) -> None:
    frames = [PHOTO, *[Image.new("RGB", PHOTO.size, (0, 255 - n, n)) for n in range(5)]]
    assert np.array_equal(decoded(animation(frames, format_name)).pixels, pixels_of(PHOTO))


def test_83_a_webp_frame_smaller_than_its_canvas_stands_on_white() -> None:
    still = webp_bitstream(encode(Image.new("RGB", (200, 300), "black"), "WEBP", lossless=True))
    place = bytes(3) + bytes(3) + (199).to_bytes(3, "little") + (299).to_bytes(3, "little") + bytes(4)
    data = webp_file(webp_canvas(300, 300, 0x02), webp_chunk(b"ANIM", bytes(6)), webp_chunk(b"ANMF", place + still))
    pixels = decoded(data).pixels
    assert (pixels[:, :140] == 0).all()
    assert (pixels[:, -70:] == 255).all()


def test_83_later_frames_are_never_decoded() -> None:
    frames = [PHOTO, Image.new("RGB", PHOTO.size, "blue")]
    data = animation(frames, "WEBP")
    second = data.index(b"ANMF", data.index(b"ANMF") + 4)
    broken = data[: second + 40] + bytes(len(data) - second - 40)
    assert np.array_equal(decoded(broken).pixels, pixels_of(PHOTO))


def test_of_a_phone_file_with_two_pictures_the_first_is_taken() -> None:
    result = decoded(mpo(PHOTO, Image.new("RGB", PHOTO.size, "blue")))
    assert result.format == "jpeg"
    assert mean_difference(result.pixels, pixels_of(PHOTO)) < 2
