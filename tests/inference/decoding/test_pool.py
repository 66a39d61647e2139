"""The pool and real decoder processes. They are held up by halting them (SIGSTOP)."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import structlog
from PIL import Image

from inference.decoding.decoder import DecoderFault
from inference.decoding.pool import Decoded, DecodePool
from inference.errors import DecoderExhausted, ImageTooLarge, InvalidImage, Overloaded, UnsupportedImage
from inference.image import decode
from inference.types import Preprocessing
from support.decoders import decoders_of
from support.faults import sitecustomize as faults
from support.freed import freed_at_once
from support.pictures import encode, gradient

PREPROCESSING = Preprocessing(resize_px=8, crop_px=8, interpolation="bilinear")
MAX_PIXELS = 100_000


def picture(colour: str, width: int = 48, kind: str = "PNG") -> bytes:
    return encode(Image.new("RGB", (width, 40), colour), kind)


CRASHES = picture("red", faults.CRASH)


class Pool:
    """A running pool, and how often one of its decoders died."""

    def __init__(self, *, processes: int = 1, max_waiting: int = 2, stuck_after_s: float = 60.0) -> None:
        self.deaths = 0
        self.died = asyncio.Event()
        self._others = set(decoders_of(psutil.Process()))
        self._pool = DecodePool(
            max_pixels=MAX_PIXELS, processes=processes, max_waiting=max_waiting, stuck_after_s=stuck_after_s, on_death=self._died
        )
        self.aclose = self._pool.aclose

    def _died(self) -> None:
        self.deaths += 1
        self.died.set()

    def start(self) -> None:
        self._pool.start()

    def decode(self, data: bytes, client: str = "a", *, draft: bool = True, may_displace: bool = True) -> asyncio.Task[Decoded]:
        """Begin to decode, and go on until it waits for its answer or has one."""
        return asyncio.create_task(self._pool.decode(data, PREPROCESSING, client=client, draft=draft, may_displace=may_displace))

    def decoders(self) -> list[psutil.Process]:
        """Its processes."""
        return [one for one in decoders_of(psutil.Process()) if one not in self._others]

    def decoder(self) -> psutil.Process:
        """The only one."""
        (found,) = self.decoders()
        return found


@asynccontextmanager
async def running(*, processes: int = 1, max_waiting: int = 2, stuck_after_s: float = 60.0) -> AsyncIterator[Pool]:
    """A pool whose decoders are there: with `processes` of 1, one picture is decoded, one is with the decoder, too, and one waits."""
    pool = Pool(processes=processes, max_waiting=max_waiting, stuck_after_s=stuck_after_s)
    pool.start()
    try:
        await asyncio.gather(*(pool.decode(picture("gray")) for _ in range(processes)))
        yield pool
    finally:
        await pool.aclose()


async def colour_of(decoding: asyncio.Task[Decoded]) -> tuple[int, ...]:
    pixels = (await decoding).image.pixels
    assert pixels.shape == (8, 8, 3)
    assert (pixels == pixels[0, 0]).all()
    return tuple(pixels[0, 0].tolist())


@pytest.fixture
def with_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `support.faults`."""
    monkeypatch.setenv("PYTHONPATH", faults.ENVIRONMENT["PYTHONPATH"])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
async def test_a_picture_is_what_it_would_be_in_our_own_process(kind: str) -> None:
    data = encode(gradient(90, 60), kind)
    async with running() as pool:
        image, decode_ms = await pool.decode(data)

    expected = decode(data, preprocessing=PREPROCESSING, max_pixels=MAX_PIXELS)
    assert np.array_equal(image.pixels, expected.pixels)
    assert image[1:] == expected[1:] == (kind.lower(), 90, 60, kind == "JPEG")
    assert decode_ms > 0


async def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_unless_it_must_not_be() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    data = encode(Image.fromarray(noise), "JPEG")
    async with running() as pool:
        for draft in (True, False):
            image = (await pool.decode(data, draft=draft)).image
            expected = decode(data, preprocessing=PREPROCESSING, max_pixels=MAX_PIXELS, draft=draft)
            assert image.drafted == draft
            assert np.array_equal(image.pixels, expected.pixels)


@pytest.mark.parametrize(
    ("data", "error", "note"),
    [
        (encode(gradient(400, 400), "PNG"), ImageTooLarge, None),
        (b"no picture", UnsupportedImage, None),
        (b"", UnsupportedImage, None),
        (encode(gradient(90, 60), "WEBP")[:-40], InvalidImage, None),
        (picture("red", 901), InvalidImage, "ValueError: a fault"),
        (picture("red", faults.OUT_OF_MEMORY), DecoderExhausted, None),
    ],
)
async def test_what_the_decoder_refuses_reaches_the_caller(
    with_faults: None, data: bytes, error: type[Exception], note: str | None
) -> None:
    async with running() as pool:
        with pytest.raises(error) as raised:
            await pool.decode(data)

        assert pool.deaths == 0
    assert note is None or raised.value.__notes__ == [note]


async def test_a_defect_of_ours_is_told_with_its_trace_and_no_variable(with_faults: None) -> None:
    async with running() as pool:
        with pytest.raises(DecoderFault) as raised:
            await pool.decode(picture("red", faults.SECRET_IN_LOCALS))
        assert await colour_of(pool.decode(picture("red"))) == (255, 0, 0)

    assert str(raised.value) == "RuntimeError: nobody expects this fault"
    (trace,) = raised.value.__notes__
    assert "in faulty_decode" in trace  # which holds the secret
    assert faults.SECRET not in trace


async def test_a_crop_that_is_larger_than_its_place_is_our_defect() -> None:
    pool = DecodePool(max_pixels=MAX_PIXELS, processes=1, max_waiting=1)
    pool.start()
    try:
        with pytest.raises(DecoderFault):
            await pool.decode(picture("red"), Preprocessing(resize_px=2400, crop_px=2400, interpolation="nearest"), client="a")
        assert (await pool.decode(picture("red"), PREPROCESSING, client="a")).image.pixels[0, 0].tolist() == [255, 0, 0]
    finally:
        await pool.aclose()


async def test_one_picture_more_than_may_wait_is_refused_at_once() -> None:
    async with running() as pool:
        pool.decoder().suspend()
        held = [pool.decode(picture("red")) for _ in range(3)]
        with pytest.raises(Overloaded) as refused:
            await pool.decode(picture("red"))
        pool.decoder().resume()

        assert len(await asyncio.gather(*held)) == 3
    assert refused.value.retry_after_s >= 1


async def test_a_place_is_free_again_when_a_picture_is_done_or_has_failed() -> None:
    async with running() as pool:
        for _ in range(5):
            with pytest.raises(UnsupportedImage):
                await pool.decode(b"no picture")
            await pool.decode(picture("red"))


async def test_a_cancelled_picture_that_waits_is_never_decoded_and_frees_its_place(with_faults: None) -> None:
    async with running() as pool:
        pool.decoder().suspend()
        held = [pool.decode(picture("red")) for _ in range(2)]
        waiting = pool.decode(CRASHES)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        last = pool.decode(picture("blue"))
        await asyncio.sleep(0)
        pool.decoder().resume()

        assert await colour_of(last) == (0, 0, 255)
        assert len(await asyncio.gather(*held)) == 2
        assert pool.deaths == 0


async def test_a_cancelled_picture_that_is_with_a_decoder_keeps_its_place_until_it_is_decoded() -> None:
    async with running() as pool:
        pool.decoder().suspend()
        first = pool.decode(picture("green"))
        held = [pool.decode(picture("red")) for _ in range(2)]
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(Overloaded):
            await pool.decode(picture("red"))
        pool.decoder().resume()

        assert [await colour_of(one) for one in held] == [(255, 0, 0)] * 2


async def test_clients_are_decoded_in_turn_and_a_flood_gives_way_where_too_many_wait() -> None:
    done: list[asyncio.Task[Decoded]] = []
    async with running(max_waiting=4) as pool:
        pool.decoder().suspend()
        flood = [pool.decode(picture("red"), "flood") for _ in range(5)]
        await asyncio.sleep(0)
        single = pool.decode(picture("white"), "single")
        with pytest.raises(Overloaded):
            await flood[4]
        for task in (*flood[:4], single):
            task.add_done_callback(done.append)
        pool.decoder().resume()
        await asyncio.gather(single, *flood[:4])

    assert done == [*flood[:3], single, flood[3]]  # the first two are with the decoder already


async def test_what_may_displace_nothing_is_refused_where_too_many_wait() -> None:
    async with running(max_waiting=4) as pool:
        pool.decoder().suspend()
        flood = [pool.decode(picture("red"), "flood") for _ in range(4)]
        last_place = pool.decode(picture("white"), "single", may_displace=False)
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await pool.decode(picture("white"), "single", may_displace=False)
        pool.decoder().resume()
        assert [await colour_of(one) for one in (*flood, last_place)] == [(255, 0, 0)] * 4 + [(255, 255, 255)]


async def test_a_refused_file_is_freed_at_once_without_the_garbage_collector() -> None:
    file = b"no picture" * 1000

    async def is_refused() -> bool:
        try:
            await pool.decode(file)
        except UnsupportedImage:  # pytest.raises would hold on to it
            return True
        return False

    async with running() as pool, freed_at_once(file):
        assert await is_refused()


async def test_what_is_not_decoded_when_the_pool_is_closed_is_cancelled() -> None:
    async with running() as pool:
        pool.decoder().suspend()
        held = [pool.decode(picture("red")) for _ in range(3)]
        await asyncio.sleep(0)
        await pool.aclose()

        for one in held:
            with pytest.raises(asyncio.CancelledError):
                await one


async def test_a_picture_that_crashes_its_decoder_is_invalid_and_all_others_are_decoded(with_faults: None) -> None:
    async with running() as pool:
        with structlog.testing.capture_logs() as logs:
            pool.decoder().suspend()
            crash, *others = [pool.decode(data) for data in (CRASHES, picture("red"), picture("blue"))]
            await asyncio.sleep(0)
            pool.decoder().resume()
            with pytest.raises(InvalidImage):
                await crash

            assert [await colour_of(one) for one in others] == [(255, 0, 0), (0, 0, 255)]
        assert pool.deaths == 1
    (death,) = logs
    assert (death["event"], death["exit_code"], death["busy"]) == ("decoder_died", -11, True)


async def test_the_picture_of_a_decoder_that_is_killed_may_be_sent_again(with_faults: None) -> None:
    async with running() as pool:
        pool.decoder().suspend()
        first, second = [pool.decode(data) for data in (picture("red", faults.KILLED), picture("red"))]
        await asyncio.sleep(0)
        pool.decoder().resume()
        with pytest.raises(DecoderExhausted):
            await first

        assert await colour_of(second) == (255, 0, 0)
        assert pool.deaths == 1


async def test_where_a_decoder_dies_of_its_second_picture_the_first_is_not_blamed(with_faults: None) -> None:
    async with running() as pool:
        one = pool.decoder()
        one.suspend()
        first, second = [pool.decode(data) for data in (picture("red"), CRASHES)]
        await asyncio.sleep(0)
        one.resume()
        while one.status() != psutil.STATUS_ZOMBIE:
            pass  # the event loop hears of the answer and of the death at once
        with pytest.raises(InvalidImage):
            await second

        assert await colour_of(first) == (255, 0, 0)


async def test_a_decoder_that_dies_before_it_began_with_them_costs_no_picture() -> None:
    async with running() as pool:
        with structlog.testing.capture_logs() as logs:
            pool.decoder().suspend()
            held = [pool.decode(picture(colour)) for colour in ("red", "blue")]
            await asyncio.sleep(0)
            pool.decoder().kill()

            assert [await colour_of(one) for one in held] == [(255, 0, 0), (0, 0, 255)]
    assert [entry["busy"] for entry in logs] == [False]


@pytest.mark.parametrize("turns", range(4))
async def test_a_decoder_that_dies_idle_costs_no_picture(turns: int) -> None:
    async with running() as pool:
        former = pool.decoder()
        former.send_signal(signal.SIGSEGV)
        while former.status() != psutil.STATUS_ZOMBIE:
            pass  # the event loop must not hear of it yet
        for _ in range(turns):
            await asyncio.sleep(0)

        assert await colour_of(pool.decode(picture("red"))) == (255, 0, 0)


async def test_signals_to_a_whole_group_of_processes_are_the_worker_s_to_heed() -> None:
    async with running() as pool:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            pool.decoder().send_signal(number)
            assert await colour_of(pool.decode(picture("red"))) == (255, 0, 0)
        assert pool.deaths == 0


async def test_a_decoder_that_is_stuck_is_killed(with_faults: None) -> None:
    async with running(stuck_after_s=1) as pool:
        stuck, second = [pool.decode(data) for data in (picture("red", faults.ENDLESS), picture("red"))]
        with pytest.raises(DecoderExhausted):
            await stuck

        assert await colour_of(second) == (255, 0, 0)


@pytest.mark.parametrize("draft", [True, False])
async def test_no_picture_waits_behind_a_large_one_or_one_to_be_decoded_in_full_while_another_decoder_comes_free(
    with_faults: None, draft: bool
) -> None:
    height = 100 if draft else 1
    first = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, faults.ENDLESS, 3), np.uint8)), "PNG")
    assert (len(first) > 256 * 1024) == draft
    async with running(processes=2, max_waiting=8) as pool:
        endless = pool.decode(first, draft=draft)
        others = [pool.decode(picture("red")) for _ in range(6)]
        async with asyncio.timeout(30):  # half of the time after which the stuck one would be killed
            assert [await colour_of(one) for one in others] == [(255, 0, 0)] * 6
        assert not endless.done()


async def test_a_decoder_that_does_not_get_ready_is_no_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(script(tmp_path, "#!/bin/sh\nexec sleep 60\n")))
    pool = Pool(stuck_after_s=0.2)
    with structlog.testing.capture_logs() as logs:
        pool.start()
        with pytest.raises(DecoderExhausted):
            await pool.decode(picture("red"))
        await pool.aclose()
    assert {entry["event"] for entry in logs} == {"decoder_not_started"}


async def test_a_decoder_that_cannot_be_started_costs_no_picture_while_another_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_fails = f'#!/bin/sh\nmkdir "{tmp_path}/one" 2> /dev/null && exit 1\nexec "{sys.executable}" "$@"\n'
    monkeypatch.setattr("sys.executable", str(script(tmp_path, first_fails)))
    pool = Pool(processes=2)
    with structlog.testing.capture_logs() as logs:
        pool.start()
        assert await colour_of(pool.decode(picture("red"))) == (255, 0, 0)
        await pool.aclose()
    assert [entry["event"] for entry in logs] == ["decoder_not_started"]


async def test_what_comes_when_the_pool_is_closed_is_refused() -> None:
    async with running() as pool:
        await pool.aclose()
        with pytest.raises(DecoderExhausted):
            await pool.decode(picture("red"))


@pytest.mark.parametrize("turns", range(4))
async def test_a_pool_is_closed_while_a_start_fails(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    pool = Pool()
    pool.start()
    for _ in range(turns):
        await asyncio.sleep(0)
    await asyncio.wait_for(pool.aclose(), 30)


async def test_where_no_decoder_can_be_started_pictures_are_refused_until_one_can(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    with monkeypatch.context() as broken, structlog.testing.capture_logs() as logs:
        broken.setattr("sys.executable", "/bin/false")
        pool.start()
        with pytest.raises(DecoderExhausted):
            await pool.decode(picture("red"))
        broken.setattr("sys.executable", "/nowhere/python")
        with pytest.raises(DecoderExhausted):
            await pool.decode(picture("red"))
    assert await colour_of(pool.decode(picture("red"))) == (255, 0, 0)
    await pool.aclose()

    assert {entry["event"] for entry in logs} == {"decoder_not_started"}


async def test_a_pool_that_is_closed_before_its_decoders_are_there_leaves_none() -> None:
    for turns in range(12):
        pool = Pool(processes=2)
        pool.start()
        for _ in range(turns):
            await asyncio.sleep(0.01)  # wherever in its start that is
        await pool.aclose()

        assert pool.decoders() == []


NONSENSE = {
    "no length that may be": "b'\\xff' * 8",
    "no message": "b'\\4\\0\\0\\0\\x92\\xa8fin'",
    "one answer more than was asked for": "2 * frame(Finished('jpeg', 8, 8))",
    "ready twice": "frame(Ready())",
    "an endless message": "b'\\0\\0\\xf0\\0' + bytes(1 << 20)",
    "a text for a book": "frame(Refused('InvalidImage', 'x' * 10_000, []))",
    "many notes": "frame(Refused('InvalidImage', '', ['']  * 10_000))",
    "an impossible side": "frame(Finished('jpeg', 1 << 63, 8))",
}


@pytest.mark.parametrize("said", NONSENSE)
async def test_a_decoder_that_talks_nonsense_is_replaced(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await a_pool_gets_rid_of(f"connection.recv(1)\nconnection.sendall({NONSENSE[said]})\ntime.sleep(60)", tmp_path, monkeypatch)


async def test_a_decoder_that_answers_what_it_has_not_read_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "connection.recv(1)\nwhile True: connection.sendall(frame(Finished('jpeg', 8, 8)))"
    await a_pool_gets_rid_of(said, tmp_path, monkeypatch, picture("red") + bytes(5_000_000))


async def test_a_decoder_that_closes_its_end_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "connection.recv(1)\nconnection.shutdown(socket.SHUT_WR)\ntime.sleep(60)"
    await a_pool_gets_rid_of(said, tmp_path, monkeypatch, picture("red") + bytes(5_000_000))


async def a_pool_gets_rid_of(does: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes | None = None) -> None:
    """Of a decoder that, once it is ready, does something else; and goes on with an honest one."""
    path = script(
        tmp_path,
        f"""#!{sys.executable}
import socket, sys, time
from inference.decoding.messages import Finished, Ready, Refused
from inference.frames import frame
connection = socket.socket(fileno=int(sys.argv[3]))
connection.sendall(frame(Ready()))
{does}
""",
    )
    pool = Pool()
    with structlog.testing.capture_logs() as logs:
        with monkeypatch.context() as taken_over:
            taken_over.setattr("sys.executable", str(path))
            pool.start()
            asked = pool.decode(data or picture("red"))
            await asyncio.wait_for(pool.died.wait(), 30)
        assert await colour_of(pool.decode(picture("blue"))) == (0, 0, 255)
        await asyncio.wait({asked}, timeout=30)  # whatever it was told of its own picture
        assert asked.done()
    await pool.aclose()

    assert {entry["event"] for entry in logs} == {"decoder_died"}


def script(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "python"
    path.write_text(text)
    path.chmod(0o755)
    return path


async def test_a_decoder_knows_no_secret_and_leaves_no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LENSGATE_SECURITY__DATABASE_URL", "OTEL_EXPORTER_OTLP_HEADERS", "PGPASSWORD"):
        monkeypatch.setenv(name, "a-secret")
    async with running() as pool:
        one = pool.decoder()

        assert "a-secret" not in one.environ().values()
        assert one.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        # Standard streams, the socket and the memory: no database, log or other caller.
        assert one.num_fds() == 5


async def test_whoever_takes_a_decoder_over_can_open_nothing(with_faults: None) -> None:
    async with running() as pool:
        with pytest.raises(InvalidImage) as raised:
            await pool.decode(picture("red", faults.REACHES_OUT))

        assert raised.value.__notes__ == ["ValueError: nothing"]
        assert pool.decoder().rlimit(psutil.RLIMIT_NPROC) == (0, 0)


async def test_each_caller_gets_its_own_picture_whatever_becomes_of_the_decoders() -> None:
    colours = [(red, green, 7) for red in range(0, 250, 25) for green in range(0, 250, 25)]
    async with running(processes=2, max_waiting=200) as pool:
        tasks = {
            colour: pool.decode(encode(Image.new("RGB", (48, 40), colour), "PNG"), f"client {number % 7}")
            for number, colour in enumerate(colours)
        }
        lost = 0
        for number, (colour, task) in enumerate(tasks.items()):
            if number % 20 == 10:
                for one in pool.decoders()[:1]:
                    one.kill()
            try:
                assert await colour_of(task) == colour
            except DecoderExhausted:
                lost += 1

        assert 0 <= lost <= 5
