"""Runs batches on one GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from inference.types import Pixels
from inference.worker.staging import Staging


class CudaLane:
    """One batch at a time.

    Args:
        graph: `[N,H,W,3]` uint8 to `[N,classes]` float32 logits, on `device`.
        device: the GPU.
        max_batch: the most pictures at once.
        crop_px: their side.
    """

    def __init__(self, graph: Callable[[torch.Tensor], torch.Tensor], *, device: torch.device, max_batch: int, crop_px: int) -> None:
        self._graph = graph
        self._device = device
        self._staging = Staging(max_batch, crop_px, pinned=True)

    def logits(self, pixels: Sequence[Pixels], *, alone: bool) -> torch.Tensor:
        """Run one forward pass: `[N, classes]` float32 logits on the GPU for 1 to `max_batch` pictures.

        Raises:
            ValueError: the pictures are not as they must be; nothing was run.
            RuntimeError: torch's, when the pass fails.
        """
        batch = self._staging.fill(pixels)
        with torch.inference_mode():
            return self._graph(batch.to(self._device, non_blocking=True))
