"""Any mode that a JPEG, PNG or WebP decodes to, as 8-bit RGB on white."""

from __future__ import annotations

import numpy as np
from PIL import Image

from inference.image.source import TransparentColour

_WHITE = (255, 255, 255)


def to_rgb(image: Image.Image, transparent: TransparentColour | None = None) -> Image.Image:
    """The picture in mode RGB. Transparency, whatever its form, shows white; 16-bit grey keeps its high byte, as 16-bit colour does.

    Args:
        image: loaded; modes 1, L, LA, I;16, P, RGB, RGBA and CMYK (which Pillow has already turned from Adobe's inverted inks).
        transparent: what `PictureSource.transparent` says; the picture itself must know of no transparent colour.
    """
    if image.mode == "I;16":
        image, transparent = _high_byte(image, transparent if isinstance(transparent, int) else None), None
    if image.mode == "P" and isinstance(transparent, bytes):
        _whiten_palette(image, transparent)
    elif image.mode in ("1", "L") and isinstance(transparent, int):
        image = _whiten_grey(image, transparent)
    elif image.mode == "RGB" and isinstance(transparent, tuple):
        image.info["transparency"] = transparent
        image = image.convert("RGBA")
    if image.mode == "LA":
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        canvas = Image.new("RGB", image.size, _WHITE)
        canvas.paste(image, mask=image)
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_byte(image: Image.Image, transparent: int | None) -> Image.Image:
    grey16 = np.asarray(image)
    grey8 = (grey16 >> 8).astype(np.uint8)
    if transparent is not None:
        grey8[grey16 == transparent] = 255
    return Image.fromarray(grey8)


def _whiten_palette(image: Image.Image, alphas: bytes) -> None:
    """Put the palette's colours on white instead of the pixels: the same picture, for 256 sums."""
    palette = image.getpalette("RGB") or []
    for entry, alpha in enumerate(alphas[: len(palette) // 3]):
        for band in range(3 * entry, 3 * entry + 3):
            palette[band] = (palette[band] * alpha + 255 * (255 - alpha) + 127) // 255
    image.putpalette(palette, "RGB")


def _whiten_grey(image: Image.Image, transparent: int) -> Image.Image:
    return image.convert("L").point([255 if grey == transparent else grey for grey in range(256)])
