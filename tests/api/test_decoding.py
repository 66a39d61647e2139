from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

import api.decoding
from api.decoding import Decoded, DecodePool
from inference.errors import ImageTooLarge, Overloaded, UnsupportedImage
from inference.image import DecodedImage, decode
from inference.types import Preprocessing

PREPROCESSING = Preprocessing(resize_px=8, crop_px=8, interpolation="bilinear")
Picture = Callable[..., bytes]


class HeldDecoder:
    """The real decoder, which begins only when it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.seen: list[bytes] = []

    def __call__(self, data: bytes, *, preprocessing: Preprocessing, max_pixels: int) -> DecodedImage:
        self.seen.append(data)
        self.begun.release()
        assert self.go.wait(10)
        return decode(data, preprocessing=preprocessing, max_pixels=max_pixels)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldDecoder]:
    decoder = HeldDecoder()
    monkeypatch.setattr(api.decoding, "decode", decoder)
    yield decoder
    decoder.go.set()


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    pool = DecodePool(max_pixels=100_000, threads=1, max_waiting=1)
    yield pool
    pool.close()


async def _begun(held: HeldDecoder) -> None:
    assert await asyncio.to_thread(held.begun.acquire, timeout=10)


async def _one_runs_and_one_waits(
    pool: DecodePool, picture: Picture, held: HeldDecoder
) -> tuple[asyncio.Task[Decoded], asyncio.Task[Decoded]]:
    running = asyncio.create_task(pool.decode(picture("red"), PREPROCESSING, client="a"))
    await _begun(held)
    waiting = asyncio.create_task(pool.decode(picture("green"), PREPROCESSING, client="a"))
    await asyncio.sleep(0)
    return running, waiting


async def test_a_picture_is_decoded_and_timed(pool: DecodePool, picture: Picture) -> None:
    image, decode_ms = await pool.decode(picture("red"), PREPROCESSING, client="a")

    assert image.pixels.shape == (8, 8, 3)
    assert (image.width, image.height) == (48, 40)
    assert decode_ms > 0


@pytest.mark.parametrize(("size", "data", "error"), [((400, 400), None, ImageTooLarge), ((1, 1), b"no picture", UnsupportedImage)])
async def test_what_the_decoder_refuses_reaches_the_caller(
    pool: DecodePool, picture: Picture, size: tuple[int, int], data: bytes | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await pool.decode(data or picture(size=size), PREPROCESSING, client="a")


async def test_one_picture_more_than_may_wait_is_refused_at_once(pool: DecodePool, picture: Picture, held: HeldDecoder) -> None:
    tasks = [asyncio.create_task(pool.decode(picture(), PREPROCESSING, client="a")) for _ in range(2)]
    await _begun(held)
    with pytest.raises(Overloaded) as refused:
        await pool.decode(picture(), PREPROCESSING, client="a")

    assert refused.value.retry_after_s >= 1
    held.go.set()
    assert len(await asyncio.gather(*tasks)) == 2


async def test_a_place_is_free_again_when_a_picture_is_done_or_has_failed(pool: DecodePool, picture: Picture) -> None:
    for _ in range(5):
        with pytest.raises(UnsupportedImage):
            await pool.decode(b"no picture", PREPROCESSING, client="a")
        await pool.decode(picture(), PREPROCESSING, client="a")


async def test_a_cancelled_picture_that_waits_is_never_decoded_and_frees_its_place(
    pool: DecodePool, picture: Picture, held: HeldDecoder
) -> None:
    running, waiting = await _one_runs_and_one_waits(pool, picture, held)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    last = asyncio.create_task(pool.decode(picture("blue"), PREPROCESSING, client="a"))
    held.go.set()
    await asyncio.gather(running, last)

    assert held.seen == [picture("red"), picture("blue")]


async def test_a_cancelled_picture_that_is_being_decoded_keeps_its_place_until_the_thread_is_free(
    pool: DecodePool, picture: Picture, held: HeldDecoder
) -> None:
    running = asyncio.create_task(pool.decode(picture(), PREPROCESSING, client="a"))
    await _begun(held)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    waiting = asyncio.create_task(pool.decode(picture(), PREPROCESSING, client="a"))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await pool.decode(picture(), PREPROCESSING, client="a")
    held.go.set()

    assert (await waiting).image.pixels.shape == (8, 8, 3)


async def test_clients_are_decoded_in_turn_and_a_flood_gives_way_where_too_many_wait(picture: Picture, held: HeldDecoder) -> None:
    pool = DecodePool(max_pixels=100_000, threads=1, max_waiting=3)
    flood = [
        asyncio.create_task(pool.decode(picture(colour), PREPROCESSING, client="flood")) for colour in ("red", "green", "blue", "gray")
    ]
    await _begun(held)
    single = asyncio.create_task(pool.decode(picture("white"), PREPROCESSING, client="single"))
    with pytest.raises(Overloaded):
        await flood[3]
    held.go.set()
    await asyncio.gather(single, *flood[:3])
    pool.close()

    assert held.seen == [picture(colour) for colour in ("red", "green", "white", "blue")]


async def test_what_waits_when_the_pool_is_closed_is_cancelled_and_never_decoded(
    pool: DecodePool, picture: Picture, held: HeldDecoder
) -> None:
    running, waiting = await _one_runs_and_one_waits(pool, picture, held)
    pool.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    held.go.set()

    assert (await running).image.pixels.shape == (8, 8, 3)
    assert held.seen == [picture("red")]
