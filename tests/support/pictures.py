"""Pictures for every test: honest ones in all forms, broken ones, and those made to hurt. All are real bytes, made on the spot."""

from __future__ import annotations

import re
import struct
import zlib
from functools import cache
from importlib.resources import files
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile, ImageOps

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION_TAG = 0x0112

NOT_PICTURES: dict[str, bytes] = {
    "empty": b"",
    "text": b"This is not a picture.\n" * 10,
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "html": b"<!doctype html><img src=x onerror=alert(1)>",
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "zip": b"PK\x03\x04" + bytes(60),
    "wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(30),
    "start of a JPEG": b"\xff\xd8",
    "start of a PNG": PNG_SIGNATURE[:7],
    "zeros": bytes(4096),
}
"""With `foreign_pictures`, what must be refused for being no JPEG, PNG or WebP."""


def foreign_pictures() -> dict[str, bytes]:
    """Real pictures in formats that are not accepted."""
    image = gradient(40, 30)
    return {name: encode(image, name) for name in ("GIF", "TIFF", "BMP", "ICO", "PPM", "TGA", "JPEG2000", "AVIF")}


@cache
def photo(name: str = "coffee.png") -> Image.Image:
    """A photograph that scikit-image ships: `coffee.png` (600x400), `chelsea.png` (a cat, 451x300) or `rocket.jpg` (640x427). RGB."""
    with (files("skimage") / "data" / name).open("rb") as file:
        return Image.open(file).convert("RGB")


@cache
def gradient(width: int, height: int) -> Image.Image:
    """A smooth RGB picture, different in every corner, so that a flip or a shift shows."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x / max(width - 1, 1)
    green = 255 * y / max(height - 1, 1)
    return Image.fromarray(np.stack([red, green, 255 - (red + green) / 2], axis=-1).astype(np.uint8))


def encode(image: Image.Image, format: str, **options: object) -> bytes:  # noqa: A002 - Pillow's own name for it
    """The bytes of `Image.save`."""
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def oriented(image: Image.Image, orientation: int, format: str, **options: object) -> bytes:  # noqa: A002
    """The picture as a camera held another way stores it: showing it upright gives `image` back."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = image.transpose(undo[orientation]) if orientation in undo else image
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return encode(stored, format, exif=exif, **options)


def animation(frames: list[Image.Image], format: str) -> bytes:  # noqa: A002
    """An animated PNG or WebP, without loss."""
    return encode(frames[0], format, save_all=True, append_images=frames[1:], duration=50, lossless=True)


def mpo(first: Image.Image, second: Image.Image) -> bytes:
    """Two pictures in one file, as phones and 3D cameras write it."""
    return encode(first, "MPO", save_all=True, append_images=[second], quality=95)


# PNG


def png_chunk(name: bytes, body: bytes) -> bytes:
    """One chunk with its checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    """The signature and IHDR."""
    return PNG_SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def png(
    samples: np.ndarray[tuple[int, ...], np.dtype[np.uint8 | np.uint16]], colour: int, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG of `[H,W]` or `[H,W,C]` samples, 8 or 16 bits deep, with chunks before and after its image data."""
    depth = samples.dtype.itemsize * 8
    rows = samples.astype(samples.dtype.newbyteorder(">")).reshape(len(samples), -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = png_header(samples.shape[1], samples.shape[0], depth, colour)
    return header + before + png_chunk(b"IDAT", data) + after + png_chunk(b"IEND", b"")


def with_png_chunks(data: bytes, chunks: bytes) -> bytes:
    """The PNG with more chunks right behind its header."""
    return data[:33] + chunks + data[33:]


def with_bad_checksum(data: bytes, name: bytes = b"IDAT") -> bytes:
    """The PNG with one bit of that chunk's checksum flipped."""
    start = data.index(name) - 4
    (length,) = struct.unpack_from(">I", data, start)
    at = start + 8 + length
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def without_image_data(data: bytes) -> bytes:
    """The PNG without its IDAT chunks."""
    return data[: data.index(b"IDAT") - 4] + png_chunk(b"IEND", b"")


# JPEG


def progressive_jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """Pillow's encoder needs a buffer for the whole file."""
    buffer_bytes, ImageFile.MAXBLOCK = ImageFile.MAXBLOCK, max(ImageFile.MAXBLOCK, image.width * image.height * 3)
    try:
        return encode(image, "JPEG", quality=quality, progressive=True, subsampling=0)
    finally:
        ImageFile.MAXBLOCK = buffer_bytes


def jpeg_segment(code: int, body: bytes) -> bytes:
    """One segment with its marker and length."""
    return bytes([0xFF, code]) + struct.pack(">H", len(body) + 2) + body


def jpeg_header(width: int, height: int, frame: int = 0xC0) -> bytes:
    """A JPEG that promises a size and ends there."""
    return b"\xff\xd8" + jpeg_segment(frame, struct.pack(">BHHB", 8, height, width, 3) + b"\1\x11\0\2\x11\0\3\x11\0")


def with_jpeg_segments(data: bytes, segments: bytes) -> bytes:
    """The JPEG with more segments right behind its start."""
    return data[:2] + segments + data[2:]


def with_scans(data: bytes, total: int) -> bytes:
    """A progressive JPEG with empty scans added, so that it has `total`."""
    present = len(re.findall(rb"\xff\xda", data))
    scan = jpeg_segment(0xDA, bytes([1, 1, 0, 1, 63, 0]))
    return data[:-2] + scan * (total - present) + b"\xff\xd9"


def with_refinement_scans(data: bytes, total: int, blocks: int) -> bytes:
    """The same with scans that visit every block of the first component: the dearest scan there is for its few bytes.

    Each is a run of `blocks` blocks without a new coefficient (ITU-T T.81, G.1.2.3), in end-of-band runs of 16,384 and more.
    """
    present = len(re.findall(rb"\xff\xda", data))
    table = jpeg_segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0]))  # the one-bit code 0 for the symbol EOB14
    bits = ""
    while blocks > 0:
        run = min(max(blocks, 1 << 14), (1 << 15) - 1)
        bits += "0" + format(run - (1 << 14), "014b")
        blocks -= run
    bits += "1" * (-len(bits) % 8)
    entropy = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
    scan = jpeg_segment(0xDA, bytes([1, 1, 0, 1, 63, 0x10])) + entropy
    return data[:-2] + table + scan * (total - present) + b"\xff\xd9"


def cmyk_jpeg(image: Image.Image) -> bytes:
    """Four inks, inverted, with Adobe's marker, as Photoshop writes it."""
    return encode(image.convert("CMYK"), "JPEG", quality=95)


def ycck_jpeg(image: Image.Image) -> bytes:
    """The same with the first three inks as luminance and chrominance (Adobe transform 2)."""
    # libjpeg reads C, M, Y as the complement of the RGB that Y, Cb, Cr stand for; Pillow inverts what it writes as CMYK.
    planes = [ImageOps.invert(plane) for plane in ImageOps.invert(image).convert("YCbCr").split()]
    data = encode(Image.merge("CMYK", [*planes, Image.new("L", image.size, 0)]), "JPEG", quality=95)
    transform = data.index(b"Adobe") + 11
    return data[:transform] + b"\2" + data[transform + 1 :]


# WebP


def webp_chunk(name: bytes, body: bytes) -> bytes:
    """One RIFF chunk with its padding."""
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def webp_file(*chunks: bytes) -> bytes:
    """A RIFF file of these chunks."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_canvas(width: int, height: int, flags: int = 0) -> bytes:
    """A VP8X chunk."""
    return webp_chunk(b"VP8X", struct.pack("<I", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"))


def webp_bitstream(data: bytes) -> bytes:
    """The one chunk of a simple WebP file."""
    assert data[12:15] == b"VP8"
    return data[12:]


# What must be told that it promises too much


def huge_headers(width: int, height: int) -> dict[str, bytes]:
    """Files of a few dozen bytes whose headers promise so much; nothing follows them."""
    lossless = b"\x2f" + ((width - 1) & 0x3FFF | ((height - 1) & 0x3FFF) << 14).to_bytes(4, "little")
    return {
        "jpeg": jpeg_header(width, height),
        "progressive jpeg": jpeg_header(width, height, frame=0xC2),
        "png": png_header(width, height),
        "webp": webp_file(webp_canvas(width, height)),
        "lossy webp": webp_file(webp_chunk(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF))),
        "lossless webp": webp_file(webp_chunk(b"VP8L", lossless)),
    }
