"""What the container walkers hand to the decoder, and the bound on a picture's size that they all share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inference.errors import ImageTooLarge, InvalidImage

PictureFormat = Literal["jpeg", "png", "webp"]
TransparentColour = int | tuple[int, int, int] | bytes

MAX_SIDE_PX = 65_535
"""JPEG's own bound (16 bits a side, ITU-T T.81 B.2.2), held for every format."""


@dataclass(frozen=True, slots=True)
class PictureSource:
    """A picture as its container describes it. Every bound has been checked; nothing has been decoded."""

    format: PictureFormat
    width: int
    height: int
    content: bytes
    """The file cut down to what pixels are made of: no text, profile, thumbnail, comment or further frame reaches the decoder."""
    orientation: int = 1
    """EXIF orientation, 1 to 8 (CIPA DC-008, tag 0x0112)."""
    transparent: TransparentColour | None = None
    """PNG's tRNS: the one transparent grey (as decoded: 0-255, or 0-65535 where the picture has 16 bits), the one transparent
    8-bit RGB colour, or an alpha for each palette entry."""


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Hold the promised size to the bounds.

    Raises:
        InvalidImage: a side is zero.
        ImageTooLarge: more than `max_pixels` pixels, or a side longer than `MAX_SIDE_PX`.
    """
    if width < 1 or height < 1:
        raise InvalidImage("The picture has no pixels.")
    if max(width, height) > MAX_SIDE_PX:
        raise ImageTooLarge(f"The picture's longer side is more than {MAX_SIDE_PX} pixels.")
    if width * height > max_pixels:
        raise ImageTooLarge(f"The picture has more than {max_pixels} pixels.")
