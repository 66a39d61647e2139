"""A part of what `python -m benchmarks.accuracy` measures on hundreds of crops: what is served names what the exact model names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from benchmarks.accuracy import WANTED, Agreement, crops, files, measure, photographs
from inference.image import decode
from inference.types import Preprocessing

# One crop of them that differs is too many.
CROPS = 48


@pytest.fixture(scope="module")
def measured() -> list[Agreement]:
    return measure(CROPS, [("fp32", False), ("bf16", False)], photographs(None))


def test_what_is_decoded_in_full_is_answered_as_by_the_exact_model(measured: list[Agreement]) -> None:
    served = [one for one in measured if one.precision == "fp32" and one.decoder not in ("JPEG, drafted", "JPEG, as served")]
    assert [one.decoder for one in served] == ["PNG", "WebP", "JPEG"]
    assert [one for one in served if one.share < WANTED or one.lost_lead or one.off_by > 1e-4 or any(one.pixels_off_by)] == []


def test_a_scaled_decoding_is_a_little_off_and_names_another_class_only_where_a_hair_decides(measured: list[Agreement]) -> None:
    (drafted,) = [one for one in measured if one.precision == "fp32" and one.decoder == "JPEG, drafted"]
    # Decoded to once the pixels that are wanted instead of twice, they would be off by 1.8 levels.
    assert 0.05 < drafted.pixels_off_by[0] < 0.6
    assert drafted.pixels_off_by[1] <= 3
    assert 0.001 < drafted.off_by < 0.12
    assert drafted.share > 0.95
    # The class that was lost was no more than 1.3 times as probable: e to the power of this.
    assert drafted.lost_lead < 0.25


def test_a_scaled_decoding_whose_close_calls_are_decoded_in_full_names_the_class_of_the_exact_model(measured: list[Agreement]) -> None:
    (served,) = [one for one in measured if one.precision == "fp32" and one.decoder == "JPEG, as served"]
    assert served.share >= WANTED
    assert 0 < served.twice < 0.25


def test_the_measure_sees_a_coarser_number_format(measured: list[Agreement]) -> None:
    """bf16 is why `PRECISION=auto` serves this model in float32 on a CPU; were it as good, that exception could go."""
    assert max(one.off_by for one in measured if one.precision == "bf16") > 0.02


@pytest.mark.parametrize("side", [200, 1_400])
@pytest.mark.parametrize("resize_px", [232, 256])
def test_only_the_drafted_file_is_decoded_at_another_size(side: int, resize_px: int) -> None:
    card = Preprocessing(resize_px=resize_px, crop_px=224, interpolation="bicubic")
    crop = Image.open(photographs(None)[0]).resize((side, side))
    for kind, data in files(crop, card).items():
        drafted, whole = (decode(data, preprocessing=card, max_pixels=10_000_000, draft=draft).pixels for draft in (True, False))
        assert np.array_equal(drafted, whole) == (kind != "JPEG, drafted"), kind


def test_photographs_can_be_ones_own_and_are_turned_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (300, 200), "white")
    picture.paste("black", (0, 0, 150, 200))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees, so that its left is above
    picture.save(tmp_path / "a.JPG", exif=exif)
    (tmp_path / "notes.txt").write_text("none")
    paths = photographs(tmp_path)
    assert [path.name for path in paths] == ["a.JPG"]
    for crop in crops(9, paths):
        assert (crop.mode, crop.width) == ("RGB", crop.height)
        assert crop.getpixel((0, 0)) == crop.getpixel((crop.width - 1, 0))


@pytest.mark.parametrize("folder", ["", "is-not-there"])
def test_a_folder_without_photographs_is_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ValueError, match="no photograph"):
        photographs(tmp_path / folder)
