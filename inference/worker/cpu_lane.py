"""Runs batches on the CPU: one lane of several that share its cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from inference.types import Pixels
from inference.worker.lane import TopClasses, top_classes
from inference.worker.staging import Staging


class CpuLane:
    """One batch at a time, with all cores when it is alone and with its share of them when other lanes compute too.

    Threads that share one forward pass wait for one another some hundred times in it. As long as each has a core, that is cheap; as soon as
    a decoder or a second batch wants one of those cores, all wait for the one that was stopped. So the batches of a busy engine run beside
    one another instead, each on cores of its own.

    GNU OpenMP lets a thread look for its next work only while all that it has started, for whichever lane, are no more than the cores;
    else each sleeps at once, and a batch that is alone takes a quarter longer (docs/performance.md). So only the first lane has batches
    that are alone, and its threads and the helpers of the other lanes together are as many as the cores.

    Args:
        graph: `[N,H,W,3]` uint8 to `[N,classes]` float32 logits; called from this lane's thread alone, but lanes share it.
        max_batch: the most pictures at once.
        crop_px: their side.
        top_k: how many classes of each are returned.
        threads_alone: how many threads a batch gets that is alone.
        threads: how many it gets otherwise.
    """

    def __init__(
        self, graph: Callable[[torch.Tensor], torch.Tensor], *, max_batch: int, crop_px: int, top_k: int, threads_alone: int, threads: int
    ) -> None:
        self._graph = graph
        self._staging = Staging(max_batch, crop_px)
        self._top_k = top_k
        self._threads_alone = threads_alone
        self._threads = threads

    def infer(self, pixels: Sequence[Pixels], *, alone: bool) -> TopClasses:
        """See `Lane.infer`."""
        with torch.inference_mode():
            ids, probabilities = top_classes(self._run(pixels, alone=alone), self._top_k)
            return ids.numpy(), probabilities.numpy()

    def logits(self, pixels: Sequence[Pixels]) -> NDArray[np.float32]:
        """See `Lane.logits`."""
        with torch.inference_mode():
            return self._run(pixels, alone=True).numpy()

    def _run(self, pixels: Sequence[Pixels], *, alone: bool) -> torch.Tensor:
        batch = self._staging.fill(pixels)
        # Of this thread: OpenMP keeps the number for each.
        torch.set_num_threads(self._threads_alone if alone else self._threads)
        return self._graph(batch)
