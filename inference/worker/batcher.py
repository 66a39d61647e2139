"""Work-conserving batching: when a lane of the device is free it takes of what waits a batch that runs well. There is no timer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from inference.ipc import Failure, Result
from inference.types import Pixels
from inference.worker.metrics import EngineMetrics
from inference.worker.queue import Entry, FairQueue
from inference.worker.watchdog import ForwardPass

_SMOOTHING: Final = 0.2
"""The weight of the newest batch in the running mean of its size."""

_log: Final = structlog.get_logger()


class BatchModel(Protocol):
    """What the batcher needs of a model."""

    @property
    def max_batch(self) -> int:
        """The most pictures that `infer` takes at once."""
        ...

    @property
    def lanes(self) -> int:
        """How many batches can run at once, each on a thread of its own."""
        ...

    def batch_size(self, waiting: int) -> int:
        """How many of so many pictures, at least one, best go into one batch."""
        ...

    def infer(self, pixels: Sequence[Pixels], *, lane: int, alone: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Class ids and probabilities, each `[N, K]`, most probable first; `alone`, only ever of lane 0: no other lane has work."""
        ...

    def self_test(self, lane: int) -> None:
        """Run a fixed picture on a lane; raise `InferenceFailed` when the answer is not the one of warm-up."""
        ...


Answers = list[tuple[Entry, Result | Failure]]


class Batcher:
    """Draws batches from the queue and runs them, on one thread for each lane of the device.

    Lane 0 comes first: the others take what comes while it is busy. So a picture that comes alone always meets the same thread, whose
    helpers OpenMP keeps awake for the next one (see `CpuLane`).

    Args:
        deliver: called on those threads, once a batch, with the answer of each of its pictures; and by `admit`.
        metrics: what is measured here.
        seconds_per_batch: what a full batch took at warm-up while all lanes had one, from which the running means start.
        self_test_every_s: how often the device must prove that it still computes as it did at warm-up.
    """

    def __init__(
        self,
        queue: FairQueue,
        model: BatchModel,
        *,
        deliver: Callable[[Answers], None],
        metrics: EngineMetrics,
        seconds_per_batch: float,
        self_test_every_s: float = 30.0,
    ) -> None:
        self._queue = queue
        self._model = model
        self._deliver = deliver
        self._metrics = metrics
        # By batch size: a batch of one takes more time an image than a full one, so its pace says nothing of a full queue's.
        self._seconds_by_size = [seconds_per_batch] * (model.max_batch + 1)
        self._self_test_every_s = self_test_every_s
        self._running = [0] * model.lanes
        """How many pictures each lane runs at this moment."""
        self._passes = [0] * model.lanes
        """How many forward passes each lane has begun."""

    @property
    def lanes(self) -> int:
        """How many threads `run` wants, each with its own lane."""
        return self._model.lanes

    def passes(self) -> list[ForwardPass | None]:
        """What each lane runs at this moment."""
        pairs = zip(self._passes, tuple(self._running), strict=True)
        return [ForwardPass(number, self._seconds_by_size[size]) if size else None for number, size in pairs]

    def admit(self, entry: Entry) -> Failure | None:
        """Queue one picture, or say why not: a full queue, or a predicted wait past its deadline, is refused at once.

        Where its place is that of another client's picture, that one is refused instead.
        """
        wait_s = self._wait_s(self._queue.ahead_of(entry.client))
        refusal = Failure(entry.id, "overloaded", max(1, math.ceil(wait_s)))
        if entry.received_ns + wait_s * 1e9 > entry.deadline_ns:
            return refusal
        turned_out = self._queue.put(entry)
        if turned_out is entry:
            return refusal
        if turned_out is not None:
            wait_s = self._wait_s(self._queue.ahead_of(turned_out.client))
            self._deliver([(turned_out, Failure(turned_out.id, "overloaded", max(1, math.ceil(wait_s))))])
        return None

    def predicted_wait_s(self) -> float:
        """How long a picture behind all that wait now would wait for its batch to start, from the measured times of the device."""
        return self._wait_s(len(self._queue))

    def _wait_s(self, ahead: int) -> float:
        full_batches = ahead // self._model.max_batch
        # The lane that is free first takes it: one that is idle now, or the one with the shortest batch.
        running_s = min(self._seconds_by_size[size] if size else 0.0 for size in self._running)
        return running_s + full_batches * self._seconds_by_size[self._model.max_batch] / self._model.lanes

    def run(self, lane: int) -> None:
        """Run one lane's batches until the queue is closed. Blocks; call it on the thread that the lane belongs to.

        Raises:
            InferenceFailed: the device does not compute as it did at warm-up; nothing that it says can be trusted.
        """
        next_test_s = time.monotonic() + self._self_test_every_s
        while not self._queue.closed:
            timeout_s = max(0.0, next_test_s - time.monotonic())
            sound = self._run_next(lane, timeout_s)
            if time.monotonic() >= next_test_s or not sound:
                self._self_test(lane)
                next_test_s = time.monotonic() + self._self_test_every_s

    def _run_next(self, lane: int, timeout_s: float) -> bool:
        """Wait for a batch and run it, as `_run`. On its own, so that nothing holds its pictures and their memory in the next wait."""
        batch, late = self._queue.take(self._model.batch_size, timeout_s=timeout_s, if_true=lambda: lane == 0 or self._running[0] > 0)
        if late:
            self._deliver([(entry, Failure(entry.id, "deadline")) for entry in late])
        return not batch or self._run(batch, lane)

    def _begin(self, lane: int, pictures: int) -> None:
        self._passes[lane] += 1
        self._running[lane] = pictures
        if lane == 0:
            self._queue.wake()

    def _self_test(self, lane: int) -> None:
        self._begin(lane, 1)
        try:
            self._model.self_test(lane)
        finally:
            self._running[lane] = 0

    def _run(self, batch: list[Entry], lane: int) -> bool:
        """Run one batch; False when nothing at all came of it, so that the device must prove itself before it gets another one."""
        self._begin(lane, len(batch))
        alone = lane == 0 and not any(self._running[1:]) and not len(self._queue)
        started_ns = time.monotonic_ns()
        try:
            class_ids, probabilities = self._model.infer([entry.pixels for entry in batch], lane=lane, alone=alone)
        except Exception:  # noqa: BLE001  whatever the device raises, its callers get an answer and the next batch is tried
            _log.exception("forward_failed", batch_size=len(batch))
            self._metrics.batch_failed()
            self._deliver([(entry, Failure(entry.id, "failed")) for entry in batch])
            return False
        finally:
            self._running[lane] = 0
        elapsed_s = (time.monotonic_ns() - started_ns) / 1e9
        self._seconds_by_size[len(batch)] += _SMOOTHING * (elapsed_s - self._seconds_by_size[len(batch)])
        most = max(entry.top_k for entry in batch)
        ids, scores = class_ids[:, :most].tolist(), probabilities[:, :most].tolist()
        infer_ms = elapsed_s * 1e3
        self._metrics.batch_run(len(batch), elapsed_s)  # before anybody can have seen its answers
        self._deliver(
            [
                (
                    entry,
                    Result(
                        entry.id,
                        ids[row][: entry.top_k],
                        scores[row][: entry.top_k],
                        (started_ns - entry.received_ns) / 1e6,
                        infer_ms,
                        len(batch),
                    )
                    # The model marks a picture whose pass overflowed with NaN: it fails alone.
                    if math.isfinite(scores[row][0])
                    else Failure(entry.id, "failed"),
                )
                for row, entry in enumerate(batch)
            ]
        )
        return any(math.isfinite(row[0]) for row in scores)
