"""What a lane of a device is: it runs one batch at a time, on the thread that owns it, beside the other lanes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from inference.types import Pixels

TopClasses = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Class ids and their softmax probabilities, each `[N, top_k]`, most probable first."""


class Lane(Protocol):
    """Belongs to one thread.

    Both methods raise `ValueError` when the pictures are not as they must be (nothing was run then), and torch's `RuntimeError` when the
    device fails.
    """

    def infer(self, pixels: Sequence[Pixels], *, alone: bool) -> TopClasses:
        """Classify 1 to `max_batch` pictures; `alone` says that no other lane has work."""
        ...

    def logits(self, pixels: Sequence[Pixels]) -> NDArray[np.float32]:
        """`[N, classes]`, in class order, for the same pictures; for comparisons."""
        ...


def top_classes(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`[N, classes]` logits to ids and probabilities, each `[N, top_k]`. A picture whose pass overflowed gets a row of NaN."""
    probabilities, ids = torch.softmax(logits, dim=1).topk(top_k, dim=1)
    return ids, probabilities
