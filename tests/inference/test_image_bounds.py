"""What is refused before it costs anything, and what accepted pictures may cost at most (attacks 76, 77)."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin, _imaging

from inference.errors import DecoderExhausted, ImageTooLarge, InvalidImage
from inference.image import DecodedImage, decode
from inference.image import jpeg as jpeg_walker
from inference.types import Preprocessing
from support.pictures import (
    animation,
    encode,
    gradient,
    huge_headers,
    jpeg_header,
    jpeg_segment,
    photo,
    png_chunk,
    png_header,
    progressive_jpeg,
    webp_bitstream,
    webp_canvas,
    webp_chunk,
    webp_file,
    with_jpeg_segments,
    with_png_chunks,
    with_refinement_scans,
    with_scans,
)

RESNET50 = Preprocessing(resize_px=232, crop_px=224, interpolation="bilinear")


def decoded(data: bytes, max_pixels: int = 10_000_000) -> DecodedImage:
    return decode(data, preprocessing=RESNET50, max_pixels=max_pixels)


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening any decoder fails the test: what is refused under this was refused by the walk alone."""

    def opened(*_: object) -> None:
        pytest.fail("a decoder was opened")

    for decoder in (JpegImagePlugin.JpegImageFile, PngImagePlugin.PngImageFile, WebPImagePlugin.WebPImageFile):
        monkeypatch.setattr(decoder, "__init__", opened)


def kind_of_result(data: bytes, *, limit: str, value: int) -> str:
    """The format, or the error's name, of a decode in a process of its own under a resource limit set just before it."""
    script = f"""
import resource, sys
from inference.image import decode
from inference.types import Preprocessing
card = Preprocessing(resize_px=232, crop_px=224, interpolation="bilinear")
data = sys.stdin.buffer.read()
resource.setrlimit(resource.{limit}, ({value}, {value}))
try:
    print(decode(data, preprocessing=card, max_pixels=500_000_000).format)
except Exception as error:
    print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def images_allocated() -> int:
    """How many pixel buffers Pillow has made so far."""
    return int(_imaging.get_stats()["new_count"])


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize("name", huge_headers(16_000, 16_000))
def test_76_a_header_that_promises_too_many_pixels_is_too_large_and_nothing_is_allocated(name: str) -> None:
    before = images_allocated()
    with pytest.raises(ImageTooLarge):
        decoded(huge_headers(16_000, 16_000)[name], max_pixels=50_000_000)
    assert images_allocated() == before


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize("data", [png_header(65_536, 1), png_header(1, 2**31 - 1), webp_file(webp_canvas(2**24, 1))])
def test_76_a_side_over_65535_is_too_large_however_few_the_pixels(data: bytes) -> None:
    with pytest.raises(ImageTooLarge):
        decoded(data, max_pixels=500_000_000)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_76_exactly_the_limit_is_accepted_and_one_pixel_more_is_not(format_name: str) -> None:
    data = encode(gradient(300, 200), format_name)
    assert decoded(data, max_pixels=60_000).width == 300
    with pytest.raises(ImageTooLarge):
        decoded(data, max_pixels=59_999)


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize("data", [jpeg_header(0, 9), jpeg_header(9, 0), png_header(0, 9), png_header(9, 0)])
def test_a_header_without_pixels_is_invalid(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        decoded(data)


@pytest.mark.usefixtures("no_decoder")
def test_76_a_second_png_header_cannot_raise_the_size() -> None:
    data = encode(gradient(30, 20), "PNG")
    before = images_allocated()
    with pytest.raises(InvalidImage):
        decoded(with_png_chunks(data, png_header(60_000, 60_000)[8:]))
    assert images_allocated() == before


@pytest.mark.usefixtures("no_decoder")
def test_76_a_second_jpeg_frame_cannot_raise_the_size() -> None:
    data = encode(gradient(30, 20), "JPEG")
    before = images_allocated()
    with pytest.raises(InvalidImage):
        decoded(with_jpeg_segments(data, jpeg_header(10, 10)[2:]))
    assert images_allocated() == before


@pytest.mark.parametrize("lossless", [True, False])
def test_76_a_webp_frame_larger_than_its_canvas_is_invalid(lossless: bool) -> None:
    large = webp_bitstream(encode(Image.new("RGB", (3000, 3000)), "WEBP", lossless=lossless))
    before = images_allocated()
    with pytest.raises(InvalidImage):
        decoded(webp_file(webp_canvas(10, 10), large), max_pixels=1000)
    place = bytes(6) + (9).to_bytes(3, "little") * 2 + bytes(4)
    with pytest.raises(InvalidImage):
        decoded(webp_file(webp_canvas(10, 10, 2), webp_chunk(b"ANIM", bytes(6)), webp_chunk(b"ANMF", place + large)), max_pixels=1000)
    assert images_allocated() == before


def test_76_pillows_own_bound_neither_warns_nor_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)
    for format_name in ("JPEG", "PNG"):
        assert decoded(encode(gradient(600, 400), format_name)).width == 600  # four times over it
    assert decoded(encode(gradient(300, 300), "WEBP")).width == 300  # between once, where Pillow warns, and twice
    with pytest.raises(ImageTooLarge):
        decoded(encode(gradient(600, 400), "WEBP"))


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize("total", [33, 300_000])
def test_77_a_jpeg_of_too_many_scans_is_invalid_and_not_one_is_decoded(total: int) -> None:
    with pytest.raises(InvalidImage, match="scans"):
        decoded(with_scans(progressive_jpeg(gradient(300, 200)), total))


def test_77_a_jpeg_of_as_many_scans_as_are_allowed_is_accepted() -> None:
    data = progressive_jpeg(gradient(300, 200))
    assert np.array_equal(decoded(with_refinement_scans(data, 32, blocks=38 * 25)).pixels, decoded(data).pixels)


def test_77_the_progressive_scans_of_four_inks_are_accepted() -> None:
    data = encode(gradient(300, 200).convert("CMYK"), "JPEG", progressive=True)
    assert data.count(b"\xff\xda") == 18  # the most that libjpeg writes
    assert decoded(data).width == 300


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_77_a_sequential_jpeg_has_no_more_scans_than_components(mode: str) -> None:
    data = encode(gradient(30, 20).convert(mode), "JPEG")
    with pytest.raises(InvalidImage, match="scans"):
        decoded(with_scans(data, len(mode) + 1))


def test_77_a_sequential_jpeg_may_have_a_scan_for_each_component() -> None:
    zeros = jpeg_segment(0xC4, bytes([0x00, 1, *[0] * 15, 0, 0x10, 1, *[0] * 15, 0]))  # the one-bit code 0: no difference, no coefficient
    data = encode(Image.new("RGB", (16, 16)), "JPEG", subsampling=0)
    scans = b"".join(jpeg_segment(0xDA, bytes([1, component, 0, 0, 63, 0])) + bytes(1) for component in (1, 2, 3))
    assert (decoded(data[: data.index(b"\xff\xda")] + zeros + scans + b"\xff\xd9").pixels == 128).all()


def test_77_the_worst_jpeg_costs_a_few_times_an_honest_one() -> None:
    """Twice what was measured (docs/proof.md), so that no busy machine fails it; a hundred scans would cost ten times."""
    honest = progressive_jpeg(photo().resize((1500, 1000)), 85)
    hostile = with_refinement_scans(honest, jpeg_walker.MAX_SCANS, blocks=188 * 125)
    assert cost_s(hostile) < 5 * cost_s(honest)


def cost_s(data: bytes) -> float:
    """The least CPU time of several decodes."""
    took_s = []
    for _ in range(5):
        began_s = time.thread_time()
        decoded(data)
        took_s.append(time.thread_time() - began_s)
    return min(took_s)


def test_77_scans_of_embedded_pictures_and_of_what_follows_the_end_do_not_count() -> None:
    data = encode(photo(), "JPEG")
    looks_like_scans = b"\xff\xda\0\x0c" * 2_000
    assert np.array_equal(decoded(with_jpeg_segments(data, jpeg_segment(0xE4, looks_like_scans))).pixels, decoded(data).pixels)
    assert np.array_equal(decoded(data + looks_like_scans).pixels, decoded(data).pixels)


def test_77_stuffed_bytes_and_restart_markers_are_not_taken_for_the_end_of_a_scan() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    data = encode(noise, "JPEG", quality=100, restart_marker_blocks=1)
    assert data.count(b"\xff\0") > 100
    assert sum(data.count(bytes([0xFF, 0xD0 + number])) for number in range(8)) > 300
    assert decoded(data).height == 300


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(with_jpeg_segments(encode(gradient(30, 20), "JPEG"), jpeg_segment(0xFE, b"") * 500_000), id="JPEG comments"),
        pytest.param(with_png_chunks(encode(gradient(30, 20), "PNG"), png_chunk(b"IDAT", b"") * 200_000), id="empty PNG data"),
        pytest.param(with_png_chunks(encode(gradient(30, 20), "PNG"), png_chunk(b"tEXt", b"a\0b") * 200_000), id="PNG texts"),
        pytest.param(webp_file(webp_canvas(30, 20), webp_chunk(b"XMP ", b"") * 500_000), id="WebP chunks"),
        pytest.param(png_header(30, 20) + png_chunk(b"IDAT", bytes(70_000)) + png_chunk(b"IEND", b""), id="more PNG data than pixels"),
        pytest.param(b"\xff\xd8" + b"\xff" * 4_000_000, id="JPEG fill bytes"),
        pytest.param(with_jpeg_segments(encode(gradient(30, 20), "JPEG"), jpeg_segment(0xDB, bytes(65 * 1008)) * 2), id="JPEG tables"),
        pytest.param(jpeg_header(9, 9) + jpeg_segment(0xDA, b"\1\1\0\0\x3f\0") + b"\xff\0" * 2_000_000, id="JPEG stuffing"),
    ],
)
def test_floods_of_parts_are_refused_by_the_walk(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        decoded(data)


_ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("width", [3, 300])
def test_incompressible_png_data_in_the_longest_honest_coding_is_accepted(width: int, interlace: int) -> None:
    height = 90_000 // width
    samples = np.random.default_rng(0).integers(144, 256, (height, width, 3), dtype=np.uint8)  # 9 bits each in the fixed codes
    parts = [samples[y::down, x::across] for x, y, across, down in (_ADAM7 if interlace else [(0, 0, 1, 1)])]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    coder = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_FIXED)
    coded = png_chunk(b"IDAT", coder.compress(rows) + coder.flush())
    assert decoded(png_header(width, height, interlace=interlace) + coded + png_chunk(b"IEND", b"")).height == height


def test_metadata_that_unpacks_to_gigabytes_never_reaches_the_decoder() -> None:
    bomb = zlib.compress(bytes(100_000_000), 9)
    data = encode(photo(), "PNG")
    loaded = with_png_chunks(
        data, png_chunk(b"iCCP", b"p\0\0" + bomb) + png_chunk(b"zTXt", b"t\0\0" + bomb) * 20 + png_chunk(b"iTXt", b"t\0\1\0\0\0" + bomb)
    )
    assert np.array_equal(decoded(loaded).pixels, decoded(data).pixels)


def test_image_data_past_the_last_row_is_not_unpacked() -> None:
    rows = (b"\0" + b"\x40" * 900) * 300
    bomb = zlib.compress(rows + bytes(50_000_000), 1)
    broken_late = bomb[:-1000] + b"\xff" * 1000
    data = png_header(300, 300) + png_chunk(b"IDAT", broken_late) + png_chunk(b"IEND", b"")
    assert (decoded(data).pixels == 0x40).all()


def test_of_a_thousand_frames_only_the_first_reaches_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    opened = WebPImagePlugin.WebPImageFile._open

    def record(self: WebPImagePlugin.WebPImageFile) -> None:
        opened(self)
        seen.append(self.n_frames)

    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "_open", record)
    decoded(animation([Image.new("RGB", (16, 16), (n % 256, n // 256, 9)) for n in range(1000)], "WEBP"))
    assert seen == [1]


def test_the_decoder_is_given_no_metadata() -> None:
    data = encode(photo(), "JPEG", comment=b"c" * 999, icc_profile=b"p" * 200_000)
    assert len(jpeg_walker.read_jpeg(data, 10**9).content) < len(data) - 200_000


@pytest.mark.parametrize("size", [(65_535, 1), (1, 65_535), (65_535, 150), (1, 1)])
def test_no_shape_of_picture_makes_a_large_intermediate(size: tuple[int, int]) -> None:
    data = encode(Image.new("RGBA", size, (9, 9, 9, 128)), "PNG")
    assert kind_of_result(data, limit="RLIMIT_AS", value=1 << 30) == "png"


@pytest.mark.parametrize("mode", ["RGB", "I;16", "P"])
def test_80_a_decoder_out_of_memory_is_the_servers_fault(mode: str) -> None:
    size = (16_000, 16_000)
    depth, colour, row = {"RGB": (8, 2, 3 * size[0]), "I;16": (16, 0, 2 * size[0]), "P": (8, 3, size[0])}[mode]
    rows = zlib.compress((b"\0" + bytes(row)) * size[1], 1)
    palette = png_chunk(b"PLTE", bytes(6)) if mode == "P" else b""
    data = png_header(*size, depth, colour) + palette + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    assert kind_of_result(data, limit="RLIMIT_AS", value=1 << 29) == "DecoderExhausted"


def test_80_a_memory_error_anywhere_is_the_servers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", exhausted)
    with pytest.raises(DecoderExhausted):
        decoded(encode(photo(), "PNG"))


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_freed_at_once_without_the_garbage_collector(format_name: str) -> None:
    data = oriented_rgba(format_name)
    decoded(data)
    gc.disable()
    try:
        before = live_images()
        decoded(data)
        with pytest.raises(ImageTooLarge):
            decoded(data, max_pixels=1)
        assert live_images() == before
    finally:
        gc.enable()


def live_images() -> int:
    return sum(issubclass(type(item), Image.Image) for item in gc.get_objects())  # `isinstance` would wake lazy modules


def oriented_rgba(format_name: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(photo() if format_name == "JPEG" else photo().convert("RGBA"), format_name, exif=exif)


def test_a_failed_picture_is_freed_while_its_error_is_still_held() -> None:
    rows = zlib.compress(np.random.default_rng(0).bytes(901 * 300))
    broken = png_header(300, 300) + png_chunk(b"IDAT", rows[:1000] + bytes(1000) + rows[2000:]) + png_chunk(b"IEND", b"")
    gc.disable()
    try:
        before = live_images()
        with pytest.raises(InvalidImage) as caught:
            decoded(broken)
        assert caught.value.__context__ is None
        assert live_images() == before
    finally:
        gc.enable()
