"""Resize, crop and orientation against torchvision's own presets on the PIL picture (attack 82)."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import models  # type: ignore[import-untyped]  # torchvision ships no types

from inference.image import decode
from inference.image.exif import orientation_of
from inference.types import Pixels, Preprocessing
from support.pictures import (
    ORIENTATION_TAG,
    encode,
    gradient,
    jpeg_segment,
    mpo,
    oriented,
    photo,
    png_chunk,
    with_jpeg_segments,
    with_png_chunks,
)

CARDS: dict[str, tuple[models.WeightsEnum, Preprocessing]] = {
    "resnet50": (models.ResNet50_Weights.IMAGENET1K_V2, Preprocessing(resize_px=232, crop_px=224, interpolation="bilinear")),
    "vit_b_16": (models.ViT_B_16_Weights.IMAGENET1K_V1, Preprocessing(resize_px=256, crop_px=224, interpolation="bilinear")),
    "vit_b_16 swag": (models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1, Preprocessing(resize_px=384, crop_px=384, interpolation="bicubic")),
    "efficientnet_b3": (models.EfficientNet_B3_Weights.IMAGENET1K_V1, Preprocessing(resize_px=320, crop_px=300, interpolation="bicubic")),
    "convnext_tiny": (models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1, Preprocessing(resize_px=236, crop_px=224, interpolation="bilinear")),
}
SIZES = [(600, 400), (401, 333), (333, 401), (224, 224), (1, 1), (3, 2), (50, 7), (800, 100), (90, 1440), (400, 1200), (1201, 900)]
RESNET50 = CARDS["resnet50"][1]


def torchvision_pixels(weights: models.WeightsEnum, image: Image.Image) -> Pixels:
    """The preset's resize and crop; mean 0 and deviation 1 leave its float pixels at n / 255."""
    preset = weights.transforms(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels: torch.Tensor = preset(ImageOps.exif_transpose(image).convert("RGB"))
    return (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def decoded(data: bytes, card: Preprocessing = RESNET50, *, draft: bool = True) -> Pixels:
    return decode(data, preprocessing=card, max_pixels=100_000_000, draft=draft).pixels


def differences(one: Pixels, other: Pixels) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.abs(one.astype(np.int64) - other.astype(np.int64))


@pytest.mark.parametrize("card", CARDS)
def test_the_cards_of_this_file_are_torchvisions(card: str) -> None:
    weights, ours = CARDS[card]
    preset = weights.transforms()
    assert (preset.resize_size, preset.crop_size) == ([ours.resize_px], [ours.crop_px])
    assert preset.interpolation.value == ours.interpolation


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("card", CARDS)
def test_a_png_gives_torchvisions_pixels_exactly(card: str, size: tuple[int, int]) -> None:
    weights, ours = CARDS[card]
    image = photo().resize(size)
    assert np.array_equal(decoded(encode(image, "PNG", compress_level=1), ours), torchvision_pixels(weights, image))


@pytest.mark.parametrize("size", [*SIZES, (2000, 1333)])
@pytest.mark.parametrize("card", CARDS)
def test_a_jpeg_without_draft_gives_torchvisions_pixels_exactly(card: str, size: tuple[int, int]) -> None:
    weights, ours = CARDS[card]
    data = encode(photo().resize(size), "JPEG", quality=90)
    assert np.array_equal(decoded(data, ours, draft=False), torchvision_pixels(weights, Image.open(BytesIO(data))))


@pytest.mark.parametrize("crop_px", [257, 300, 301])
def test_a_crop_larger_than_the_picture_is_padded_with_black_as_torchvision_pads(crop_px: int) -> None:
    card = Preprocessing(resize_px=256, crop_px=crop_px, interpolation="bilinear")
    preset = models.ResNet50_Weights.IMAGENET1K_V1.transforms(resize_size=256, crop_size=crop_px, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    image = photo().resize((301, 256))
    expected = (preset(image) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(decoded(encode(image, "PNG"), card), expected)


@pytest.mark.parametrize("name", ["coffee.png", "chelsea.png", "rocket.jpg"])
@pytest.mark.parametrize("card", CARDS)
def test_draft_changes_a_photograph_by_less_than_half_a_level(card: str, name: str) -> None:
    weights, ours = CARDS[card]
    data = encode(photo(name).resize((3001, 2003), Image.Resampling.BICUBIC), "JPEG", quality=90)
    difference = differences(decoded(data, ours), torchvision_pixels(weights, Image.open(BytesIO(data))))
    assert 0 < difference.mean() < 0.5  # above zero: draft was used
    assert np.percentile(difference, 99) <= 3


def test_a_jpeg_under_four_times_the_target_is_decoded_whole() -> None:
    data = encode(photo().resize((1390, 4 * 232 - 1)), "JPEG")
    assert np.array_equal(decoded(data), decoded(data, draft=False))


def test_nearest_takes_no_draft_since_it_samples_single_pixels() -> None:
    card = Preprocessing(resize_px=232, crop_px=224, interpolation="nearest")
    data = encode(photo().resize((2000, 1333)), "JPEG")
    assert np.array_equal(decoded(data, card), decoded(data, card, draft=False))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(600, 400), (401, 333), (333, 402), (231, 500)])
@pytest.mark.parametrize("card", ["resnet50", "efficientnet_b3"])
def test_82_every_orientation_gives_exactly_what_exif_transpose_gives(card: str, size: tuple[int, int], orientation: int) -> None:
    weights, ours = CARDS[card]
    data = oriented(photo().resize(size), orientation, "PNG")
    assert np.array_equal(decoded(data, ours), torchvision_pixels(weights, Image.open(BytesIO(data))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP"])
def test_82_every_orientation_shows_the_same_picture_in_every_format(format_name: str, orientation: int) -> None:
    upright = gradient(300, 260)
    pixels = decoded(oriented(upright, orientation, format_name, quality=95))
    assert differences(pixels, decoded(encode(upright, "PNG"))).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_82_an_orientation_and_draft_go_together_where_the_sides_do_not_divide(orientation: int) -> None:
    data = oriented(photo().resize((2005, 1335)), orientation, "JPEG", quality=90)
    assert differences(decoded(data), decoded(data, draft=False)).mean() < 0.5


@pytest.mark.parametrize("size", [(8000, 40), (40, 8000), (300 * 17, 300), (65535, 1), (1, 65535)])
@pytest.mark.parametrize("card", ["resnet50", "efficientnet_b3"])
def test_a_very_long_picture_is_cut_first_and_differs_by_two_levels_at_most(card: str, size: tuple[int, int]) -> None:
    weights, ours = CARDS[card]
    stripes = (np.arange(size[0] * size[1] * 3, dtype=np.int64) * 7919 % 251).astype(np.uint8).reshape(size[1], size[0], 3)
    image = Image.fromarray(stripes)
    # torchvision on a part of it (the whole would be gigapixels): cut so that the middle stays the middle.
    short, long = sorted(size)
    difference = differences(decoded(encode(image, "PNG"), ours), torchvision_pixels(weights, _middle(image, short, long)))
    assert difference.max() <= 2 if short > 1 else difference.mean() < 2


def _middle(image: Image.Image, short: int, long: int) -> Image.Image:
    kept = min(long, (64 if short > 1 else 65) * short)
    kept -= (long - kept) % 2
    start = (long - kept) // 2
    return image.crop((start, 0, start + kept, short) if image.width > image.height else (0, start, short, start + kept))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_very_long_picture_is_turned_upright_too(orientation: int) -> None:
    image = photo().resize((1700, 50))
    assert differences(decoded(oriented(image, orientation, "PNG")), decoded(encode(image, "PNG"))).max() <= 2


def exif_block(order: str, entries: list[tuple[int, int, int, bytes]], count: int | None = None) -> bytes:
    byteorder = "little" if order == "II" else "big"

    def number(value: int, size: int) -> bytes:
        return value.to_bytes(size, byteorder)  # type: ignore[arg-type]  # one of the two literals

    body = b"".join(number(tag, 2) + number(kind, 2) + number(values, 4) + value for tag, kind, values, value in entries)
    return order.encode() + number(42, 2) + number(8, 4) + number(len(entries) if count is None else count, 2) + body


GOOD = (ORIENTATION_TAG, 3, 1, b"\6\0\0\0")


@pytest.mark.parametrize(
    "block",
    [
        exif_block("II", [GOOD]),
        b"Exif\0\0" + exif_block("II", [GOOD]),
        exif_block("MM", [(ORIENTATION_TAG, 3, 1, b"\0\6\0\0")]),
        exif_block("II", [(0x0100, 4, 1, bytes(4)), GOOD]),
        exif_block("II", [(ORIENTATION_TAG, 4, 1, b"\6\0\0\0")]),
        exif_block("II", [GOOD], count=65535),
    ],
)
def test_the_orientation_is_found_in_either_byte_order_and_in_a_block_cut_short(block: bytes) -> None:
    assert orientation_of(block) == 6


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif\0\0",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"XX*\0\x08\0\0\0\1\0",
        exif_block("II", []),
        exif_block("II", [(ORIENTATION_TAG, 3, 1, b"\0\0\0\0")]),
        exif_block("II", [(ORIENTATION_TAG, 3, 1, b"\x09\0\0\0")]),
        exif_block("II", [(ORIENTATION_TAG, 3, 2, b"\6\0\0\0")]),
        exif_block("II", [(ORIENTATION_TAG, 2, 1, b"\6\0\0\0")]),
        exif_block("II", [(0, 3, 1, bytes(4))] * 5000 + [GOOD]),
        exif_block("II", [GOOD])[:-1],
    ],
)
def test_a_broken_exif_block_means_upright(block: bytes) -> None:
    assert orientation_of(block) == 1


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0" + b"\xff" * 500, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 99]
)
def test_a_picture_with_broken_exif_is_still_a_picture(exif: bytes) -> None:
    png_data, jpeg_data = encode(photo(), "PNG"), encode(photo(), "JPEG")
    assert np.array_equal(decoded(with_png_chunks(png_data, png_chunk(b"eXIf", exif[6:]))), decoded(png_data))
    assert np.array_equal(decoded(with_jpeg_segments(jpeg_data, jpeg_segment(0xE1, exif))), decoded(jpeg_data))


def test_the_first_picture_of_a_phone_file_keeps_its_orientation() -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    first = photo().transpose(Image.Transpose.ROTATE_90)
    first.info["exif"] = exif.tobytes()
    data = encode(first, "MPO", save_all=True, append_images=[photo("chelsea.png")], exif=exif.tobytes(), quality=95)
    assert differences(decoded(data), decoded(mpo(photo(), photo()))).mean() < 2
