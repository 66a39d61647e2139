"""Runs batches on a GPU: one lane of two, of which one copies while the other computes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from inference.types import Pixels
from inference.worker.cuda_stream import GraphStream
from inference.worker.lane import TopClasses, top_classes
from inference.worker.staging import Staging

_FILLS_THE_DEVICE: Final = 32
"""Batches from this size on run one after the other, smaller ones beside one another. Two that each fill the device take twice as long
together, and end together: while their answers are handed out, it would have nothing to do."""


def batch_buckets(max_batch: int) -> tuple[int, ...]:
    """The sizes of the captured passes, ascending: the powers of two, and `max_batch`."""
    return (*(1 << exponent for exponent in range((max_batch - 1).bit_length())), max_batch)


def bucket_for(buckets: Sequence[int], count: int) -> int:
    """The smallest of the ascending buckets that holds `count` pictures."""
    return buckets[bisect_left(buckets, count)]


class _Outputs(NamedTuple):
    """On the device; written anew by each replay."""

    ids: torch.Tensor
    probabilities: torch.Tensor
    logits: torch.Tensor


class CudaLane:
    """One batch at a time, on a stream of its own.

    Everything from the pixels to the top classes is captured once for each bucket of batch sizes and replayed from then on: nothing is
    launched by Python and nothing allocated while it serves. A batch runs in the smallest bucket that holds it; the rows left over compute
    whatever lies there, and are never copied back.

    Args:
        graph: `[N,H,W,3]` uint8 to `[N,classes]` float32 logits, on the stream's device; lanes share it.
        stream: this lane's own.
        max_batch: the most pictures at once.
        crop_px: their side.
        top_k: how many classes of each are returned.

    Raises:
        RuntimeError: torch's; among others when the device has too little memory for batches of that size.
    """

    def __init__(
        self, graph: Callable[[torch.Tensor], torch.Tensor], stream: GraphStream, *, max_batch: int, crop_px: int, top_k: int
    ) -> None:
        self._stream = stream
        self._buckets = batch_buckets(max_batch)
        pinned = stream.device.type == "cuda"
        self._staging = Staging(max_batch, crop_px, pinned=pinned)
        self._ids = torch.empty((max_batch, top_k), dtype=torch.int64, pin_memory=pinned)
        self._probabilities = torch.empty((max_batch, top_k), dtype=torch.float32, pin_memory=pinned)
        self._inputs = torch.zeros((max_batch, crop_px, crop_px, 3), dtype=torch.uint8, device=stream.device)

        def work(size: int) -> _Outputs:
            logits = graph(self._inputs[:size])
            return _Outputs(*top_classes(logits, top_k), logits)

        with torch.inference_mode():
            # The largest first: the others then fit into the memory that it has taken. All warm-ups before any capture, whose memory is
            # its own: they would need theirs beside it.
            for size in reversed(self._buckets):
                stream.warm_up(partial(work, size))
            self._passes = {size: stream.capture(partial(work, size)) for size in reversed(self._buckets)}

    def infer(self, pixels: Sequence[Pixels], *, alone: bool) -> TopClasses:
        """See `Lane.infer`."""
        count = len(pixels)
        ids, probabilities = self._ids[:count], self._probabilities[:count]
        with torch.inference_mode(), self._stream.current():
            outputs = self._run(pixels)
            ids.copy_(outputs.ids[:count], non_blocking=True)
            probabilities.copy_(outputs.probabilities[:count], non_blocking=True)
            self._stream.wait()
            # The next batch is written to the same place.
            return ids.numpy().copy(), probabilities.numpy().copy()

    def logits(self, pixels: Sequence[Pixels]) -> NDArray[np.float32]:
        """See `Lane.logits`."""
        with torch.inference_mode(), self._stream.current():
            return self._run(pixels).logits[: len(pixels)].to("cpu", copy=True).numpy()

    def _run(self, pixels: Sequence[Pixels]) -> _Outputs:
        batch = self._staging.fill(pixels)
        self._inputs[: len(batch)].copy_(batch, non_blocking=True)
        size = bucket_for(self._buckets, len(batch))
        replay, outputs = self._passes[size]
        with self._stream.in_turn() if size >= _FILLS_THE_DEVICE else nullcontext():
            replay()
        return outputs
