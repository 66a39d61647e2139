"""Hostile, broken and odd pictures against the real gate (cases 74 to 86)."""

from __future__ import annotations

import re
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from support.decoders import DECODER, cpu_s, decoders_of
from support.faults import sitecustomize as faults
from support.held import API, Held, InFlight, connection_to, wait_until_ready
from support.pictures import (
    NOT_PICTURES,
    animation,
    cmyk_jpeg,
    encode,
    foreign_pictures,
    gradient,
    huge_headers,
    mpo,
    oriented,
    photo,
    png,
    png_chunk,
    png_header,
    progressive_jpeg,
    with_bad_checksum,
    with_scans,
    without_image_data,
    ycck_jpeg,
)
from support.redis_server import RedisServer, redis_server
from support.service import Service

PHOTO = photo()
RGB = np.asarray(PHOTO)
GREY = np.asarray(PHOTO.convert("L"))
TOLERANCE = 0.05
"""Total variation between two answers: what lossy coding at quality 95 may change."""
SCANS = 300_000


@pytest.fixture(scope="module")
def token(gate: Service) -> str:
    """Of a client that only this file uses."""
    return gate.token(gate.create_client("pictures", "predict"))


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """Where two workers count their limits together."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def faulty_gate(redis: RedisServer, start_gate: Callable[..., Service]) -> Service:
    """A gate of two workers whose decoder has the faults of `support.faults`."""
    return start_gate({**faults.ENVIRONMENT, "LENSGATE_HTTP__WORKERS": "2", "LENSGATE_SECURITY__RATE_LIMIT_STORAGE": redis.url})


@pytest.fixture(scope="module")
def faulty_token(faulty_gate: Service) -> str:
    return faulty_gate.token(faulty_gate.create_client("faults", "predict"))


def blank(width: int, height: int = 300) -> bytes:
    """A small grey PNG of that size, all of one colour."""
    rows = zlib.compress(b"\0" * (width + 1) * height, 1)
    return png_header(width, height, 8, 0) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def refusal(response: httpx.Response) -> tuple[int, str]:
    """Status and code of a problem, which must say nothing of the inside."""
    assert response.headers["content-type"] == "application/problem+json"
    assert not re.search(r"Traceback|\.py|PIL|File \"|/", response.json()["detail"])
    return response.status_code, response.json()["code"]


def scores(response: httpx.Response) -> dict[int, float]:
    assert response.status_code == 200, response.text
    return {one["class_id"]: one["confidence"] for one in response.json()["predictions"]}


def distance(one: dict[int, float], other: dict[int, float]) -> float:
    """The total variation between two answers, over the classes that either names."""
    return sum(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in one.keys() | other.keys()) / 2


NO_PICTURES = {**NOT_PICTURES, **foreign_pictures()}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_074_what_is_no_jpeg_png_or_webp_is_415_whatever_its_declared_type(gate: Service, token: str, name: str) -> None:
    for declared in ("image/jpeg", "image/png"):
        assert refusal(gate.predict(NO_PICTURES[name], token, declared)) == (415, "unsupported_media_type")


@pytest.mark.parametrize("name", huge_headers(60_000, 60_000))
def test_076_a_header_that_promises_too_many_pixels_is_413_and_no_pixel_is_allocated(gate: Service, token: str, name: str) -> None:
    processes = [*gate.children(API), *gate.children(DECODER)]
    for _ in processes:
        gate.predict(blank(300), token)  # what a first picture needs is there
    before = [reset_peak(process) for process in processes]
    side_px = 16_383 if name in ("lossy webp", "lossless webp") else 60_000  # VP8 and VP8L have 14 bits for a side
    assert refusal(gate.predict(huge_headers(side_px, side_px)[name], token)) == (413, "image_too_large")
    assert all(peak_bytes(process) - least < 4 << 20 for process, least in zip(processes, before, strict=True))


def test_076_the_memory_that_pixels_take_would_be_seen(gate: Service, token: str) -> None:
    decoders = gate.children(DECODER)
    before = [reset_peak(decoder) for decoder in decoders]
    assert gate.predict(blank(7000, 7000), token).status_code == 200  # 49 megapixels, just under the limit
    assert any(peak_bytes(decoder) - least > 40 << 20 for decoder, least in zip(decoders, before, strict=True))


def reset_peak(process: psutil.Process) -> int:
    """Start to measure the most memory that a process holds, at what it holds now. In bytes."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # proc_pid_clear_refs(5)
    return peak_bytes(process)


def peak_bytes(process: psutil.Process) -> int:
    """VmHWM of proc_pid_status(5)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_077_a_jpeg_of_300_000_scans_is_422_and_not_one_scan_is_decoded(gate: Service, token: str) -> None:
    processes = [*gate.children(API), *gate.children(DECODER)]
    picture = with_scans(progressive_jpeg(gradient(2000, 2000), 60), SCANS)
    began_s = cpu_s(processes)
    assert refusal(gate.predict(picture, token, "image/jpeg")) == (422, "invalid_image")
    # An empty scan of 4 megapixels costs 0.2 ms and more: all of them a minute, and the intake may not even walk them all.
    assert cpu_s(processes) - began_s < 2


def test_077_scans_within_the_bound_are_decoded(gate: Service, token: str) -> None:
    assert gate.predict(with_scans(progressive_jpeg(PHOTO), 30), token, "image/jpeg").json()["label"] == "espresso"


WHOLE = {"jpeg": encode(PHOTO, "JPEG"), "progressive": progressive_jpeg(PHOTO), "png": encode(PHOTO, "PNG"), "webp": encode(PHOTO, "WEBP")}
BROKEN = {
    **{f"{name} cut at {share:.0%}": data[: int(len(data) * share)] for name, data in WHOLE.items() for share in (0.1, 0.5, 0.99)},
    "bad CRC": with_bad_checksum(WHOLE["png"]),
    "bad CRC of the header": with_bad_checksum(WHOLE["png"], b"IHDR"),
    "no IDAT": without_image_data(WHOLE["png"]),
    "IDAT of nonsense": png_header(99, 99) + png_chunk(b"IDAT", b"x" * 999) + png_chunk(b"IEND", b""),
    "a header alone": png_header(99, 99),
    "a JPEG start alone": b"\xff\xd8\xff",
    "a WebP head alone": b"RIFF\x04\0\0\0WEBP",
}


@pytest.mark.parametrize("name", BROKEN)
def test_079_a_broken_picture_is_422(gate: Service, token: str, name: str) -> None:
    assert refusal(gate.predict(BROKEN[name], token)) == (422, "invalid_image")


def test_080_whatever_the_decoder_raises_is_422(faulty_gate: Service, faulty_token: str) -> None:
    for width in faults.RAISED:
        assert refusal(faulty_gate.predict(blank(width), faulty_token)) == (422, "invalid_image")
    assert faulty_gate.predict(blank(900), faulty_token).status_code == 200


def test_080_a_decoder_out_of_memory_is_503(faulty_gate: Service, faulty_token: str) -> None:
    response = faulty_gate.predict(blank(faults.OUT_OF_MEMORY), faulty_token)
    assert refusal(response) == (503, "overloaded")
    assert int(response.headers["retry-after"]) >= 1
    assert faulty_gate.predict(blank(900), faulty_token).status_code == 200


def on_white(alpha: int) -> Image.Image:
    share = alpha / 255
    return Image.fromarray(np.round(RGB * share + 255 * (1 - share)).astype(np.uint8))


def with_alpha(alpha: int) -> Image.Image:
    image = PHOTO.copy()
    image.putalpha(alpha)
    return image


def palette_with_transparency() -> tuple[bytes, Image.Image]:
    """The photograph in 32 colours, some of them transparent; and what it shows on white."""
    image = PHOTO.quantize(32)
    alphas = bytes([0] * 8 + [128] * 8 + [255] * 16)
    shown = image.copy()
    shown.info["transparency"] = alphas
    rgba = shown.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba)
    return encode(image, "PNG", transparency=alphas), white


MODES: dict[str, tuple[bytes, Image.Image]] = {
    "16-bit grey": (png(GREY.astype(np.uint16) * 257, 0), PHOTO.convert("L")),
    "16-bit grey with alpha": (png(np.dstack([GREY, np.full_like(GREY, 255)]).astype(np.uint16) * 257, 4), PHOTO.convert("L")),
    "16-bit RGB": (png(RGB.astype(np.uint16) * 257, 2), PHOTO),
    "16-bit RGBA": (png(np.dstack([RGB, np.full_like(GREY, 255)]).astype(np.uint16) * 257, 6), PHOTO),
    "grey": (encode(PHOTO.convert("L"), "PNG"), PHOTO.convert("L")),
    "bits": (encode(PHOTO.convert("1"), "PNG"), PHOTO.convert("1")),
    "CMYK": (cmyk_jpeg(PHOTO), PHOTO),
    "YCCK": (ycck_jpeg(PHOTO), PHOTO),
    "RGB JPEG without YCbCr": (encode(PHOTO, "JPEG", quality=95, keep_rgb=True), PHOTO),
    "palette": (encode(PHOTO.quantize(64), "PNG"), PHOTO.quantize(64)),
    "palette with transparency": palette_with_transparency(),
    "RGBA, opaque": (encode(with_alpha(255), "PNG"), PHOTO),
    "RGBA, half transparent": (encode(with_alpha(128), "PNG"), on_white(128)),
    "RGBA WebP, half transparent": (encode(with_alpha(128), "WEBP", lossless=True, exact=True), on_white(128)),
    "RGBA, invisible": (encode(with_alpha(0), "PNG"), Image.new("RGB", PHOTO.size, "white")),
    "phone file of two pictures": (mpo(PHOTO, gradient(600, 400)), PHOTO),
    "lossy WebP": (encode(PHOTO, "WEBP", quality=95), PHOTO),
}


@pytest.mark.parametrize("mode", MODES)
def test_081_an_odd_mode_gets_the_answer_of_its_8_bit_rgb_original(gate: Service, token: str, mode: str) -> None:
    data, original = MODES[mode]
    answer = scores(gate.predict(data, token, query="?top_k=100"))
    plain = scores(gate.predict(encode(original.convert("RGB"), "PNG"), token, query="?top_k=100"))
    assert distance(answer, plain) < TOLERANCE


def test_081_another_picture_is_further_away_than_the_tolerance(gate: Service, token: str) -> None:
    answers = [
        scores(gate.predict(encode(image, "PNG"), token, query="?top_k=100"))
        for image in (PHOTO, PHOTO.convert("L"), on_white(128), photo("chelsea.png"))
    ]
    assert all(distance(one, other) > TOLERANCE for index, one in enumerate(answers) for other in answers[:index])


@pytest.mark.parametrize(("form", "options"), [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_082_every_exif_orientation_gets_the_same_class(gate: Service, token: str, form: str, options: dict[str, object]) -> None:
    answers = [scores(gate.predict(oriented(PHOTO, number, form, **options), token, query="?top_k=100")) for number in range(1, 9)]
    assert len({max(answer, key=lambda kind: answer[kind]) for answer in answers}) == 1
    assert all(distance(answer, answers[0]) < TOLERANCE for answer in answers)


def test_082_the_stored_picture_would_get_another_answer(gate: Service, token: str) -> None:
    upright = scores(gate.predict(oriented(PHOTO, 1, "PNG"), token, query="?top_k=100"))
    lying = scores(gate.predict(encode(PHOTO.transpose(Image.Transpose.ROTATE_90), "PNG"), token, query="?top_k=100"))
    assert distance(upright, lying) > TOLERANCE


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_083_of_an_animation_the_first_frame_is_taken(gate: Service, token: str, form: str) -> None:
    frames = [PHOTO, *[photo("chelsea.png").resize(PHOTO.size)] * 3]
    answer = scores(gate.predict(animation(frames, form), token, query="?top_k=100"))
    assert distance(answer, scores(gate.predict(encode(PHOTO, "PNG"), token, query="?top_k=100"))) < TOLERANCE


def test_086_a_picture_that_crashes_its_decoder_is_422_and_takes_nobody_along(faulty_gate: Service, faulty_token: str) -> None:
    worker, _ = faulty_gate.children(API)
    decoders = {one.pid for one in decoders_of(worker)}
    after = len(faulty_gate.log)
    picture = encode(PHOTO, "PNG")
    with connection_to(faulty_gate, worker) as http, connection_to(faulty_gate, worker) as hostile:
        held = Held(faulty_gate, picture, faulty_token, worker=worker, http=http)
        try:
            assert refusal(post(hostile, blank(faults.CRASH), faulty_token)) == (422, "invalid_image")
            death = faulty_gate.wait_for("decoder_died", after=after, pid=worker.pid)
            assert (death["exit_code"], death["busy"]) == (-11, True)
            assert death["child_pid"] in decoders
            assert held.request.is_waiting
        finally:
            held.engine.resume()
        assert held.answer().json()["label"] == "espresso"
        for _ in range(4):  # by each of its decoders, the new one among them
            assert post(hostile, picture, faulty_token).json()["label"] == "espresso"


def test_086_a_worker_that_dies_takes_its_decoders_along_and_is_back(faulty_gate: Service, faulty_token: str) -> None:
    victim, other = faulty_gate.children(API)
    after = len(faulty_gate.log)
    picture = encode(PHOTO, "PNG")
    orphans = decoders_of(victim)
    with (
        connection_to(faulty_gate, victim) as to_victim,
        connection_to(faulty_gate, victim) as also_to_victim,
        connection_to(faulty_gate, other) as to_other,
    ):
        before_s = cpu_s(orphans)
        endless = InFlight(faulty_gate, blank(faults.ENDLESS), faulty_token, also_to_victim)
        while cpu_s(orphans) - before_s < 0.3:
            assert endless.is_waiting
        doomed = Held(faulty_gate, picture, faulty_token, worker=victim, http=to_victim)
        held = Held(faulty_gate, picture, faulty_token, worker=other, http=to_other)
        try:
            victim.send_signal(signal.SIGSEGV)
            for cut in (doomed.request, endless):
                with pytest.raises(httpx.TransportError):
                    cut.wait()
            assert faulty_gate.wait_for("child_died", after=after)["exit_code"] == -11
            assert held.request.is_waiting
            assert faulty_gate.get("/livez").status_code == 200
        finally:
            held.engine.resume()
        assert held.answer().json()["label"] == "espresso"
    _, alive = psutil.wait_procs(orphans, timeout=30)
    assert orphans
    assert not alive
    faulty_gate.wait_for("worker_serving", after=after)
    (back,) = [worker for worker in faulty_gate.children(API) if worker.pid != other.pid]
    with connection_to(faulty_gate, back) as http:
        wait_until_ready(http)
        assert post(http, picture, faulty_token).json()["label"] == "espresso"


def post(http: httpx.Client, picture: bytes, token: str) -> httpx.Response:
    return http.post("/predict", content=picture, headers={"Authorization": f"Bearer {token}", "Content-Type": "image/png"})
