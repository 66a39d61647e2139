"""One decoder process, as the API worker that started it sees it."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec
import numpy as np

from inference.decoding.messages import (
    BEGUN,
    BEGUN_OFFSET,
    MAX_MESSAGE_BYTES,
    MEMORY_BYTES,
    PLACE_BYTES,
    PLACES,
    REFUSALS,
    Decode,
    Failed,
    Finished,
    Ready,
    Refused,
    decode_from_decoder,
)
from inference.decoding.start import start_process
from inference.errors import InferenceError
from inference.image import DecodedImage
from inference.ipc import FrameProtocol
from inference.sealed_memory import sealed_memory
from inference.types import Pixels, Preprocessing

_MAX_ORDER_BYTES: Final = 1024
"""Of a message that goes before a file."""
_MAX_FOLLOWED_BYTES: Final = 1 << 18
"""Behind a larger file, or a JPEG that must be decoded in full, nothing waits in a decoder, as another one may be free sooner. Another JPEG
of this size is decoded within some ten milliseconds; what a flat PNG or WebP costs only its header tells, and that is not read here."""


class DecoderNotStarted(Exception):
    """The process ended before it could decode anything."""


class DecoderFault(Exception):
    """A defect of ours came to light in a decoder; the note is its stack trace."""


@dataclass(slots=True, eq=False)
class Job:
    """One picture to be decoded."""

    client: str
    data: bytes
    preprocessing: Preprocessing
    draft: bool
    done: asyncio.Future[DecodedImage]
    place: int = 0
    """Where in the shared memory its pixels will be."""
    given: int = 0
    """How often it has been given to a decoder."""


class Decoder:
    """One life of a decoder. Belongs to one event loop's thread.

    Nothing that it says decides where we read, or whose answer it is: it may be in the hands of whoever made the picture.

    Args:
        max_pixels: the most pixels that a picture's header may promise.
        on_answer: called when it has done with a picture, with the seconds that it took.
    """

    def __init__(self, *, max_pixels: int, on_answer: Callable[[float], None]) -> None:
        self._max_pixels = max_pixels
        self._on_answer = on_answer
        self._frames = FrameProtocol(self._on_message, self._kill, max_message_bytes=MAX_MESSAGE_BYTES)
        self._process: asyncio.subprocess.Process | None = None
        self._memory: mmap.mmap | None = None
        self._free = list(range(PLACES))
        self._jobs: deque[Job] = deque()
        self._answered = 0
        self._ready = asyncio.Event()
        self._gone = False
        self.first_since_s = 0.0
        """When it began with the first of what it holds, on `time.monotonic`."""

    async def start(self, *, timeout_s: float) -> None:
        """Start the process and wait until it can decode.

        Raises:
            DecoderNotStarted: it ended before.
            TimeoutError: it took too long.
            OSError: the system has no room for it.
        """
        with contextlib.ExitStack() as unless_started:
            ours, its = socket.socketpair()
            unless_started.callback(ours.close)
            with its:
                file = sealed_memory("lensgate-decoded", MEMORY_BYTES)
                try:
                    self._memory = mmap.mmap(file, MEMORY_BYTES, prot=mmap.PROT_READ)
                    self._process = await start_process(its.fileno(), file)
                finally:
                    os.close(file)
            await asyncio.get_running_loop().create_unix_connection(lambda: self._frames, sock=ours)
            unless_started.pop_all()
        ready, ended = asyncio.create_task(self._ready.wait()), asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED, timeout=timeout_s)
        finally:
            ready.cancel()
            ended.cancel()
        if not self._ready.is_set():
            if self._process.returncode is None:
                raise TimeoutError(f"not ready after {timeout_s:g} s")
            raise DecoderNotStarted(f"exit code {self._process.returncode}")

    @property
    def pid(self) -> int:
        """Of its process, once it has started."""
        assert self._process is not None
        return self._process.pid

    @property
    def room(self) -> int:
        """How many more pictures it can be given now; none once it is going."""
        if self._gone or (self._jobs and (len(self._jobs[-1].data) > _MAX_FOLLOWED_BYTES or not self._jobs[-1].draft)):
            return 0
        return len(self._free)

    @property
    def held(self) -> int:
        """How many pictures it has been given and has not answered."""
        return len(self._jobs)

    def give(self, job: Job) -> None:
        """Hand it one picture. There must be room."""
        assert self._ready.is_set()
        job.place = self._free.pop()
        job.given += 1
        if not self._jobs:
            self.first_since_s = time.monotonic()
        self._jobs.append(job)
        order = Decode(len(job.data), job.place * PLACE_BYTES, self._max_pixels, job.preprocessing, job.draft)
        self._frames.send_with(order, job.data)  # where it is gone already, `until_ended` tells

    async def until_ended(self, *, stuck_after_s: float) -> int:
        """Wait for the end of its process, and bring it about when a single picture takes too long.

        Returns:
            The exit code; minus the number of the signal that ended it.
        """
        assert self._process is not None
        ended = asyncio.create_task(self._process.wait())
        try:
            while True:
                left_s = self.first_since_s + stuck_after_s - time.monotonic() if self._jobs else stuck_after_s
                if left_s <= 0:
                    self._kill()
                done, _ = await asyncio.wait({ended}, timeout=min(max(left_s, 0.1), stuck_after_s / 4))
                if done:
                    return ended.result()
        finally:
            ended.cancel()

    def take_back(self) -> list[Job]:
        """What it has been given and will not answer any more, in order."""
        jobs = list(self._jobs)
        self._jobs.clear()
        return jobs

    @property
    def at(self) -> Job | None:
        """Which of what it holds it is at, or was when it died. It says so itself: a lie costs only one that it holds."""
        assert self._memory is not None
        begun = BEGUN.unpack_from(self._memory, BEGUN_OFFSET)[0] - self._answered
        return self._jobs[begun - 1] if 0 < begun <= len(self._jobs) else None

    async def close(self) -> None:
        """End the process, whatever it does, and wait for that."""
        self._kill()
        if self._process is not None:
            await self._process.wait()
        if self._memory is not None:
            with contextlib.suppress(BufferError):  # a failed copy's trace still holds a view
                self._memory.close()

    def _kill(self) -> None:
        self._gone = True
        self._frames.abort()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _on_message(self, encoded: bytes) -> None:
        try:
            message = decode_from_decoder(encoded)
        except msgspec.MsgspecError:
            self._kill()
            return
        if isinstance(message, Ready) and not self._ready.is_set():
            self._ready.set()
        elif isinstance(message, Ready) or not self._jobs or self._frames.unsent_bytes > self._bytes_behind_the_first():
            self._kill()  # nobody asked, or it cannot have read what it answers
        else:
            self._answer(self._jobs.popleft(), message)

    def _bytes_behind_the_first(self) -> int:
        """At least as much as is sent for all that it holds but the first."""
        return sum(len(job.data) + _MAX_ORDER_BYTES for job in islice(self._jobs, 1, None))

    def _answer(self, job: Job, message: Finished | Refused | Failed) -> None:
        self._answered += 1
        now_s = time.monotonic()
        took_s, self.first_since_s = now_s - self.first_since_s, now_s
        if not job.done.done():  # else its caller has left
            try:
                job.done.set_result(self._result(job, message))
            except Exception as error:  # noqa: BLE001  a refusal, or memory for the copy is short: it is the caller's to know
                # Its traceback would hold this frame, which holds the job: only the garbage collector would find them, and the file.
                job.done.set_exception(error.with_traceback(None))
        self._free.append(job.place)
        self._on_answer(took_s)

    def _result(self, job: Job, message: Finished | Refused | Failed) -> DecodedImage:
        if isinstance(message, Refused):
            raise _refusal(message)
        if isinstance(message, Failed):
            raise _fault(message)
        return DecodedImage(self._pixels(job), message.format, message.width, message.height, message.drafted)

    def _pixels(self, job: Job) -> Pixels:
        # A copy: the place is about to be another picture's.
        assert self._memory is not None
        side = job.preprocessing.crop_px
        return np.frombuffer(self._memory, np.uint8, side * side * 3, job.place * PLACE_BYTES).reshape(side, side, 3).copy()


def _refusal(message: Refused) -> InferenceError:
    error = REFUSALS[message.kind](message.message)
    for note in message.notes:
        error.add_note(note)
    return error


def _fault(message: Failed) -> DecoderFault:
    fault = DecoderFault(message.error)
    fault.add_note(message.trace)
    return fault
