"""A part of what `python -m benchmarks.accuracy` measures on hundreds of crops: what is served names what the exact model names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy import WANTED, Agreement, crops, files, measure, photographs
from inference.image import decode
from inference.types import Preprocessing

# One crop of them that differs is too many.
CROPS = 48
# A class that a scaled decoding takes from the exact model was no more than 1.3 times as probable: e to the power of this.
HAIR = 0.25


@pytest.fixture(scope="module")
def measured() -> list[Agreement]:
    return measure(CROPS, [("fp32", False), ("bf16", False)])


def test_every_way_of_decoding_in_full_names_what_the_exact_model_names(measured: list[Agreement]) -> None:
    served = [one for one in measured if one.precision == "fp32" and one.decoder != "JPEG, drafted"]
    assert [one.decoder for one in served] == ["PNG", "WebP", "JPEG"]
    assert [one for one in served if one.share < WANTED or one.lost_lead] == []


def test_a_scaled_decoding_names_another_class_only_where_a_hair_decides(measured: list[Agreement]) -> None:
    (drafted,) = [one for one in measured if one.precision == "fp32" and one.decoder == "JPEG, drafted"]
    assert drafted.share > 0.95
    assert drafted.lost_lead < HAIR


def test_the_measure_sees_a_coarser_number_format(measured: list[Agreement]) -> None:
    """bf16 is why `PRECISION=auto` serves this model in float32 on a CPU; were it as good, that exception could go."""
    assert min(one.share for one in measured if one.precision == "bf16") < WANTED


@pytest.mark.parametrize("side", [200, 1_400])
def test_only_the_drafted_file_is_decoded_at_another_size(side: int) -> None:
    card = Preprocessing(resize_px=256, crop_px=224, interpolation="bicubic")
    (crop,) = crops(1, [photographs(None)[0].resize((2 * side, 2 * side))])
    for kind, data in files(crop).items():
        drafted, whole = (decode(data, preprocessing=card, max_pixels=10_000_000, draft=draft).pixels for draft in (True, False))
        assert np.array_equal(drafted, whole) == (kind != "JPEG, drafted"), kind


def test_photographs_can_be_ones_own(tmp_path: Path) -> None:
    Image.new("L", (300, 200)).save(tmp_path / "a.PNG")
    (tmp_path / "notes.txt").write_text("none")
    assert [(one.mode, one.size) for one in photographs(tmp_path)] == [("RGB", (300, 200))]


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no JPEG"):
        photographs(tmp_path)
