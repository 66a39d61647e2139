"""Decoding off the event loop: a bounded number of threads, and a bounded number of pictures that wait for them, by client in turn."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from api.fair_turns import FairTurns, NoTurn
from inference.errors import Overloaded
from inference.image import DecodedImage, decode
from inference.types import Preprocessing

_SMOOTHING: Final = 0.1
"""The weight of the newest decode in the running mean: about the last twenty count."""


class Decoded(NamedTuple):
    """A picture ready for the engine, and how long the caller waited for it."""

    image: DecodedImage
    decode_ms: float


class DecodePool:
    """Decodes pictures in threads; Pillow releases the GIL.

    Args:
        max_pixels: the most pixels that a picture's header may promise.
        threads: how many pictures are decoded at once.
        max_waiting: how many more may wait for a thread.
    """

    def __init__(self, *, max_pixels: int, threads: int, max_waiting: int) -> None:
        self._max_pixels = max_pixels
        self._threads = threads
        self._executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode")
        self._turns = FairTurns(threads, max_waiting)
        self._lock = threading.Lock()
        self._mean_s = 0.0

    async def decode(self, data: bytes, preprocessing: Preprocessing, *, client: str) -> Decoded:
        """Decode one picture. Cancelled while it waits for a thread, it is never run.

        Raises:
            Overloaded: too many pictures are waiting already, and most of them are this client's.
            UnsupportedImage, InvalidImage, ImageTooLarge, DecoderExhausted: as `inference.image.decode`.
        """
        began_s = time.perf_counter()
        try:
            await self._turns.take(client)
        except NoTurn:
            wait_s = self._mean_s * (self._threads + self._turns.waiting) / self._threads
            raise Overloaded("Too many pictures are waiting to be decoded.", retry_after_s=max(1, math.ceil(wait_s))) from None
        loop = asyncio.get_running_loop()
        future = self._executor.submit(self._run, data, preprocessing)
        # Not when the caller leaves: the thread is busy until it is done.
        future.add_done_callback(lambda _: self._give_back(loop))
        image = await asyncio.wrap_future(future)
        return Decoded(image, (time.perf_counter() - began_s) * 1000)

    def close(self) -> None:
        """Drop what waits and let the threads end."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _run(self, data: bytes, preprocessing: Preprocessing) -> DecodedImage:
        began_s = time.perf_counter()
        try:
            return decode(data, preprocessing=preprocessing, max_pixels=self._max_pixels)
        finally:
            took_s = time.perf_counter() - began_s
            with self._lock:
                self._mean_s += (took_s - self._mean_s) * (_SMOOTHING if self._mean_s else 1.0)

    def _give_back(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(self._turns.give_back)
