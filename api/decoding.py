"""Decoding off the event loop: a bounded number of threads, and a bounded number of pictures that wait for them, by client in turn."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from dataclasses import dataclass
from typing import Final, NamedTuple

from inference.errors import Overloaded
from inference.fair_lines import FairLines
from inference.image import DecodedImage, decode
from inference.types import Preprocessing

_SMOOTHING: Final = 0.1
"""The weight of the newest decode in the running mean: about the last twenty count."""


class Decoded(NamedTuple):
    """A picture ready for the engine, and how long the caller waited for it."""

    image: DecodedImage
    decode_ms: float


@dataclass(slots=True, eq=False)
class _Job:
    data: bytes
    preprocessing: Preprocessing
    done: asyncio.Future[DecodedImage]


class DecodePool:
    """Decodes pictures in threads; Pillow releases the GIL. Belongs to one event loop's thread.

    The threads take the next picture by themselves: through the event loop, which is busy with HTTP, each would wait for it longer than
    many a picture takes.

    Args:
        max_pixels: the most pixels that a picture's header may promise.
        threads: how many pictures are decoded at once.
        max_waiting: how many more may wait for a thread.
    """

    def __init__(self, *, max_pixels: int, threads: int, max_waiting: int) -> None:
        self._max_pixels = max_pixels
        self._threads = threads
        self._max_held = threads + max_waiting
        self._changed = threading.Condition()
        self._waiting: FairLines[_Job] = FairLines()
        self._running = 0
        self._closed = False
        self._mean_s = 0.0
        for number in range(threads):
            threading.Thread(target=self._run, name=f"decode-{number}", daemon=True).start()

    async def decode(self, data: bytes, preprocessing: Preprocessing, *, client: str) -> Decoded:
        """Decode one picture. Cancelled while it waits for a thread, it is never run.

        Raises:
            Overloaded: too many pictures are waiting already, and most of them are this client's.
            UnsupportedImage, InvalidImage, ImageTooLarge, DecoderExhausted: as `inference.image.decode`.
        """
        began_s = time.perf_counter()
        job = _Job(data, preprocessing, asyncio.get_running_loop().create_future())
        self._put(client, job)
        try:
            image = await job.done
        except asyncio.CancelledError:
            with self._changed:
                self._waiting.discard(client, job)
            raise
        return Decoded(image, (time.perf_counter() - began_s) * 1000)

    def close(self) -> None:
        """Drop what waits, whose callers are cancelled, and let the threads end."""
        with self._changed:
            self._closed = True
            dropped = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for job in dropped:
            job.done.cancel()

    def _put(self, client: str, job: _Job) -> None:
        with self._changed:
            turned_out = self._waiting.put(client, job, full=self._running + len(self._waiting) >= self._max_held)
            wait_s = self._mean_s * (self._running + len(self._waiting)) / self._threads
            if turned_out is not job:
                self._changed.notify()
        if turned_out is not None and not turned_out.done.done():
            error = Overloaded("Too many pictures are waiting to be decoded.", retry_after_s=max(1, math.ceil(wait_s)))
            turned_out.done.set_exception(error)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return
                job = self._waiting.take()
                self._running += 1
            self._decode(job)
            del job  # the picture's bytes, until there is another

    def _decode(self, job: _Job) -> None:
        began_s = time.perf_counter()
        image: DecodedImage | None = None
        failure: BaseException | None = None
        try:
            image = decode(job.data, preprocessing=job.preprocessing, max_pixels=self._max_pixels)
        except BaseException as error:  # noqa: BLE001  handed to the caller
            failure = error
        took_s = time.perf_counter() - began_s
        with self._changed:
            self._running -= 1
            self._mean_s += (took_s - self._mean_s) * (_SMOOTHING if self._mean_s else 1.0)
        try:
            job.done.get_loop().call_soon_threadsafe(_finish, job.done, image, failure)
        except RuntimeError:  # the loop has closed: nobody waits any more
            return
        finally:
            # Its traceback holds this frame, and the frame the picture: a cycle that only the collector would find.
            del failure


def _finish(done: asyncio.Future[DecodedImage], image: DecodedImage | None, failure: BaseException | None) -> None:
    if done.done():
        return  # its caller has left
    if image is not None:
        done.set_result(image)
    else:
        assert failure is not None
        done.set_exception(failure)
