"""Stands for a CUDA stream where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar, cast

import torch

_Outputs = TypeVar("_Outputs")


class EagerStream:
    """A replay runs the work again, and writes its outputs where the first ones lie, as a CUDA graph does."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def current(self) -> AbstractContextManager[object]:
        """Nothing to choose on a CPU."""
        return nullcontext()

    def capture(self, work: Callable[[], _Outputs]) -> tuple[Callable[[], None], _Outputs]:
        """Run it now, and again at every replay."""
        outputs = work()

        def replay() -> None:
            for place, value in zip(cast("Iterable[torch.Tensor]", outputs), cast("Iterable[torch.Tensor]", work()), strict=True):
                place.copy_(value)

        return replay, outputs

    def wait(self) -> None:
        """A CPU is done when it returns."""
