"""Turn upright, resize and centre crop, to the pixel as torchvision does it, at a bounded cost.

The reference is `PIL.ImageOps.exif_transpose`, then `torchvision.transforms._presets.ImageClassification` on the PIL picture.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from inference.image.source import PictureSource
from inference.types import Pixels, Preprocessing

MAX_WHOLE_ASPECT = 16
"""Longer pictures are cut to what the crop needs before they are resized: 65,535 x 1 resized whole to 232 would be 3.5 gigapixels.
A few of their pixels in a thousand then differ from torchvision's by 1 level, or 2, because Pillow takes the box in single precision."""

_FILTERS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_SUPPORT_PX = {"nearest": 1, "bilinear": 1, "bicubic": 2}  # Pillow, src/libImaging/Resample.c
_TRANSPOSITIONS = {  # as `PIL.ImageOps.exif_transpose`
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_MIRRORED_ACROSS = (2, 3, 6, 7)  # the upright picture's left edge was the stored picture's right edge, or its bottom
_MIRRORED_DOWN = (3, 4, 7, 8)


class Plan(NamedTuple):
    """How an upright picture becomes the crop, in the pixels that it was decoded to."""

    cut: tuple[int, int, int, int] | None
    """The part to keep before anything else is done; None keeps all."""
    box: tuple[float, float, float, float]
    """What of the kept part is resized."""
    resized: tuple[int, int]
    crop: tuple[int, int, int, int]


class _Axis(NamedTuple):
    """One side of the upright picture."""

    first_px: float
    """Where the picture begins in the decoded pixels: past 0 where `draft` has padded the edge that is first now."""
    decoded_px: float
    resized_px: int
    crop_start: int
    crop_length: int
    """What the crop takes of the resized side."""

    @property
    def crop_end(self) -> int:
        return self.crop_start + self.crop_length

    def window(self, support_px: int) -> tuple[int, int, float, float]:
        """What the crop needs of the decoded side, filter support included; then where in that the crop itself begins and ends."""
        scale = self.decoded_px / self.resized_px
        last = self.first_px + self.decoded_px
        begin, end = self.first_px + self.crop_start * scale, min(self.first_px + self.crop_end * scale, last)
        margin = math.ceil(support_px * max(scale, 1.0)) + 1
        low, high = max(math.floor(begin) - margin, 0), min(math.ceil(end) + margin, math.ceil(last))
        return low, high, begin - low, end - low


def draft_size(source: PictureSource, preprocessing: Preprocessing) -> tuple[int, int] | None:
    """What to ask of a JPEG's `draft` (decoding to a half, a quarter or an eighth); None for decoding it whole.

    The shorter side keeps at least twice the pixels that it is then resized to, as in `Image.thumbnail`. On photographs the crop then
    differs from that of the whole picture by 0.2 to 0.3 levels in the mean and up to 2 in 99 of 100 pixels (`benchmarks.accuracy`); with
    only once the pixels it is 1.8 in the mean. Three or four times the pixels bring it to 0.16 and 0.13, and hardly more crops keep their
    class; `inference.close_calls` tells which of them may have lost it.
    """
    side = 2 * preprocessing.resize_px
    if preprocessing.interpolation == "nearest" or min(source.width, source.height) < 2 * side:
        return None
    return side, side


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as it is meant to be seen."""
    return image.transpose(_TRANSPOSITIONS[orientation]) if orientation in _TRANSPOSITIONS else image


def plan(source: PictureSource, decoded: tuple[float, float], preprocessing: Preprocessing) -> Plan:
    """Work out the way to the crop.

    Args:
        source: its size and orientation.
        decoded: stored width and height in decoded pixels: the source's, or fractions of them where `draft` has divided them.
        preprocessing: the sizes and the interpolation.
    """
    sides, size = decoded, (source.width, source.height)
    if source.orientation in _SIDEWAYS:
        sides, size = sides[::-1], size[::-1]
    short, long = sorted(size)
    x = _axis(sides[0], _resized_px(size[0], short, preprocessing), preprocessing, mirrored=source.orientation in _MIRRORED_ACROSS)
    y = _axis(sides[1], _resized_px(size[1], short, preprocessing), preprocessing, mirrored=source.orientation in _MIRRORED_DOWN)
    if long <= MAX_WHOLE_ASPECT * short:
        box = (x.first_px, y.first_px, x.first_px + x.decoded_px, y.first_px + y.decoded_px)
        return Plan(None, box, (x.resized_px, y.resized_px), (x.crop_start, y.crop_start, x.crop_end, y.crop_end))
    support_px = _SUPPORT_PX[preprocessing.interpolation]
    left, right, box_left, box_right = x.window(support_px)
    top, bottom, box_top, box_bottom = y.window(support_px)
    cropped = (x.crop_length, y.crop_length)
    return Plan((left, top, right, bottom), (box_left, box_top, box_right, box_bottom), cropped, (0, 0, *cropped))


def fit(image: Image.Image, planned: Plan, preprocessing: Preprocessing) -> Pixels:
    """Carry out the plan on an upright RGB picture, cut to `planned.cut`. Where the crop is larger, the border is black."""
    image = image.resize(planned.resized, _FILTERS[preprocessing.interpolation], box=planned.box).crop(planned.crop)
    side = preprocessing.crop_px
    if image.size == (side, side):
        return np.array(image)
    pixels = np.zeros((side, side, 3), np.uint8)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    pixels[top : top + image.height, left : left + image.width] = np.asarray(image)
    return pixels


def _resized_px(side: int, short: int, preprocessing: Preprocessing) -> int:
    return int(preprocessing.resize_px * side / short)  # in this order, as torchvision's `_compute_resized_output_size`


def _axis(decoded_px: float, resized_px: int, preprocessing: Preprocessing, *, mirrored: bool) -> _Axis:
    length = min(preprocessing.crop_px, resized_px)
    start = round((resized_px - length) / 2)  # half to even, as torchvision's `center_crop`
    return _Axis(math.ceil(decoded_px) - decoded_px if mirrored else 0.0, decoded_px, resized_px, start, length)
