"""From a request's bytes to the pixels that the engine takes."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from inference.errors import DecoderExhausted, ImageTooLarge, InferenceError, InvalidImage, UnsupportedImage
from inference.image.colour import to_rgb
from inference.image.fit import draft_size, fit, plan, upright
from inference.image.jpeg import read_jpeg
from inference.image.png import SIGNATURE, read_png
from inference.image.source import PictureFormat, PictureSource
from inference.image.webp import read_webp
from inference.types import Pixels, Preprocessing

# The decoders by name, not `Image.open`: no other format is ever tried, and no warning about size is ever raised.
_DECODERS: dict[PictureFormat, Callable[[BytesIO], Image.Image]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
}


class DecodedImage(NamedTuple):
    """A picture ready for the engine, and what it was."""

    pixels: Pixels
    """`[crop_px, crop_px, 3]` uint8 RGB, C-contiguous, writable."""
    format: PictureFormat
    width: int
    """Of the original, in pixels, as stored (before EXIF orientation)."""
    height: int
    drafted: bool
    """Whether it was decoded at a part of its size, so that its pixels are a little off (see `draft_size`)."""


def decode(data: bytes | memoryview, *, preprocessing: Preprocessing, max_pixels: int, draft: bool = True) -> DecodedImage:
    """Decode, turn upright, resize and crop one picture. The bytes decide what it is. Blocks; call it in a worker thread.

    Args:
        data: a JPEG (MPO included), PNG or WebP file. Of several frames the first is taken; colour profiles are ignored.
        preprocessing: the size and interpolation of the model's weights card.
        max_pixels: the most pixels that the header may promise.
        draft: decode large JPEGs at a reduced size (see `draft_size`); False gives exactly torchvision's pixels.

    Raises:
        UnsupportedImage: the bytes begin like no JPEG, PNG or WebP.
        ImageTooLarge: more pixels than `max_pixels`, or a side longer than 65,535. Nothing has been allocated for it.
        InvalidImage: broken, or dearer to decode than an honest picture of its size.
        DecoderExhausted: out of memory.
    """
    try:
        return _decode(bytes(data), preprocessing, max_pixels, draft)
    except InferenceError:
        raise
    except MemoryError:
        failure: InferenceError = DecoderExhausted("The decoder ran out of memory.")
    except Image.DecompressionBombError:  # Pillow's own bound on WebP, 179 MP, where `max_pixels` is higher
        failure = ImageTooLarge("The picture has more pixels than the decoder allows.")
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises, the picture is to blame
        failure = InvalidImage("The picture cannot be decoded.")
        failure.add_note(f"{type(error).__name__}: {error}")
    # Raised here, so that it does not hold on to the decoder's frames, and with them to the picture.
    raise failure


def _decode(data: bytes, preprocessing: Preprocessing, max_pixels: int, draft: bool) -> DecodedImage:
    source = _read_container(data, max_pixels)
    with _DECODERS[source.format](BytesIO(source.content)) as image:
        if image.size != (source.width, source.height):
            raise InvalidImage("The picture's headers contradict each other.")
        decoded: tuple[float, float] = image.size
        size = draft_size(source, preprocessing) if draft else None
        if size and isinstance(image, JpegImagePlugin.JpegImageFile):
            drafted = image.draft(None, size)
            decoded = drafted[1][2:] if drafted else decoded
        is_drafted = image.size != (source.width, source.height)
        planned = plan(source, decoded, preprocessing)
        image.load()
        turned = upright(image, source.orientation)
    rgb = to_rgb(turned.crop(planned.cut) if planned.cut else turned, source.transparent)
    pixels = fit(rgb, planned, preprocessing)
    return DecodedImage(pixels, source.format, source.width, source.height, is_drafted)


def _read_container(data: bytes, max_pixels: int) -> PictureSource:
    if data.startswith(b"\xff\xd8\xff"):
        return read_jpeg(data, max_pixels)
    if data.startswith(SIGNATURE):
        return read_png(data, max_pixels)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return read_webp(data, max_pixels)
    raise UnsupportedImage("Only JPEG, PNG and WebP pictures are accepted.")
