"""Decoding off the event loop: a bounded number of processes, and a bounded number of pictures that wait for them, by client in turn."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from inference.decoding.decoder import Decoder, Job
from inference.errors import DecoderExhausted, InferenceError, InvalidImage, Overloaded
from inference.fair_lines import FairLines
from inference.image import DecodedImage
from inference.types import Preprocessing

_SMOOTHING: Final = 0.1
"""The weight of the newest decode in the running mean: about the last twenty count."""
_PAUSE_MIN_S: Final = 0.1
_PAUSE_MAX_S: Final = 5.0
_MAX_GIVEN: Final = 3
"""A picture that so many decoders died before, without having begun with it, is given up: they all do."""
_FAULTS: Final = frozenset({signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP})
"""What C code dies of by its own doing, or a picture's."""

_log: Final = structlog.get_logger()


class Decoded(NamedTuple):
    """A picture ready for the engine, and how long the caller waited for it."""

    image: DecodedImage
    decode_ms: float


class DecodePool:
    """Decodes pictures in processes of its own. Belongs to one event loop's thread.

    A picture that its decoder dies of is refused; all others are decoded by the next one.

    Args:
        max_pixels: the most pixels that a picture's header may promise.
        processes: how many pictures are decoded at once.
        max_waiting: how many more may wait for a process.
        stuck_after_s: a decoder that is longer at one picture is killed. Far more than the intake's bounds let any picture take.
        on_death: called when a decoder has died.
    """

    def __init__(
        self,
        *,
        max_pixels: int,
        processes: int,
        max_waiting: int,
        stuck_after_s: float = 60.0,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self._max_pixels = max_pixels
        self._processes = processes
        self._max_held = processes + max_waiting
        self._stuck_after_s = stuck_after_s
        self._on_death = on_death
        self._decoders: list[Decoder] = []
        """Those that can be given pictures."""
        self._waiting: FairLines[Job] = FairLines()
        self._cannot_start: set[int] = set()
        """Which of the processes could not be started when it was tried last."""
        self._mean_s = 0.0
        self._closed = False
        self._keepers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to start the processes, on the running event loop. Returns at once."""
        self._keepers = [asyncio.create_task(self._keep(number), name=f"keep decoder {number}") for number in range(self._processes)]

    async def decode(
        self, data: bytes, preprocessing: Preprocessing, *, client: str, draft: bool = True, may_displace: bool = True
    ) -> Decoded:
        """Decode one picture. Cancelled while it waits for a process, it is never run.

        Args:
            data: a file.
            preprocessing: what the model wants.
            client: whose it is.
            draft: as for `inference.image.decode`.
            may_displace: where no more pictures can be held, it may take the place of one of a client that has more of them.

        Raises:
            Overloaded: too many pictures are waiting already, and most of them are this client's.
            UnsupportedImage, InvalidImage, ImageTooLarge, DecoderExhausted: as `inference.image.decode`.
            InvalidImage: the picture made its decoder crash.
            DecoderExhausted: its decoder was killed while it was busy with the picture, or there is none.
        """
        if self._closed:
            raise DecoderExhausted("No picture can be decoded any more.")
        began_s = time.perf_counter()
        job = Job(client, data, preprocessing, draft, asyncio.get_running_loop().create_future())
        try:
            self._put(job, may_displace=may_displace)
            image = await job.done
        except asyncio.CancelledError:
            self._waiting.discard(client, job)
            raise
        finally:
            # It may hold an error whose traceback holds this frame: only the garbage collector would find the two, and the caller's frames.
            del job
        return Decoded(image, (time.perf_counter() - began_s) * 1000)

    async def aclose(self) -> None:
        """End the processes. The callers of what is not decoded are cancelled."""
        self._closed = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._drop_waiting(None)

    def _put(self, job: Job, *, may_displace: bool) -> None:
        held = sum(decoder.held for decoder in self._decoders) + len(self._waiting)
        turned_out = self._waiting.put(job.client, job, full=held >= self._max_held, may_displace=may_displace)
        if turned_out is not None and not turned_out.done.done():
            wait_s = self._mean_s * held / self._processes
            turned_out.done.set_exception(
                Overloaded("Too many pictures are waiting to be decoded.", retry_after_s=max(1, math.ceil(wait_s)))
            )
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and (free := [decoder for decoder in self._decoders if decoder.room]):
            # Of those that are as busy as each other, the one that is so for the shortest time: another may be at something large.
            decoder = free[0] if len(free) == 1 else max(free, key=lambda decoder: (decoder.room, decoder.first_since_s))
            job = self._waiting.take()
            if not job.done.done():  # else its caller has left this very moment
                decoder.give(job)

    def _answered(self, took_s: float) -> None:
        self._mean_s += (took_s - self._mean_s) * (_SMOOTHING if self._mean_s else 1.0)
        self._hand_out()

    async def _keep(self, number: int) -> None:
        """Run a decoder, and another one whenever it ends, until cancelled."""
        pause_s = _PAUSE_MIN_S
        while True:
            decoder = Decoder(max_pixels=self._max_pixels, on_answer=self._answered)
            try:
                await self._start(decoder, number)
                pause_s = _PAUSE_MIN_S
                self._died(decoder, await self._use(decoder))
                await asyncio.sleep(_PAUSE_MIN_S)
            except Exception:  # noqa: BLE001  whatever it is: another attempt is better than no decoder
                _log.exception("decoder_not_started", restart_in_s=pause_s)
                if len(self._cannot_start) == self._processes:
                    self._drop_waiting(DecoderExhausted("No picture can be decoded now."))
                await asyncio.sleep(pause_s)
                pause_s = min(_PAUSE_MAX_S, 2 * pause_s)
            finally:
                for job in decoder.take_back():
                    job.done.cancel()
                await decoder.close()

    async def _start(self, decoder: Decoder, number: int) -> None:
        try:
            await decoder.start(timeout_s=self._stuck_after_s)
        except Exception:
            self._cannot_start.add(number)
            raise
        self._cannot_start.discard(number)

    async def _use(self, decoder: Decoder) -> int:
        """Give it pictures until it ends; its exit code."""
        self._decoders.append(decoder)
        try:
            self._hand_out()
            return await decoder.until_ended(stuck_after_s=self._stuck_after_s)
        finally:
            self._decoders.remove(decoder)

    def _died(self, decoder: Decoder, exit_code: int) -> None:
        fatal, held = decoder.at, decoder.take_back()
        for job in held:
            if job.done.done():
                continue  # its caller has left
            if job is fatal or job.given >= _MAX_GIVEN:
                job.done.set_exception(_cause_of_death(exit_code))
            else:
                self._waiting.put(job.client, job, full=False)
        self._hand_out()
        _log.error("decoder_died", child_pid=decoder.pid, exit_code=exit_code, busy=fatal is not None)
        self._on_death()

    def _drop_waiting(self, error: InferenceError | None) -> None:
        dropped = list(self._waiting)
        self._waiting.clear()
        for job in dropped:
            if error is None:
                job.done.cancel()
            elif not job.done.done():
                job.done.set_exception(error)


def _cause_of_death(exit_code: int) -> InferenceError:
    """What the caller hears of the picture that a decoder died over."""
    if -exit_code in _FAULTS:
        return InvalidImage("The picture cannot be decoded.")
    return DecoderExhausted("The decoder was ended.")  # by the system when memory ran out, by somebody, or by us when it was stuck
