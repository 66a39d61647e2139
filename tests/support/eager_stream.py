"""Stands for a CUDA stream where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar, cast

import torch

_Outputs = TypeVar("_Outputs")


class EagerStream:
    """A replay runs the work again, and writes its outputs where the first ones lie, as a CUDA graph does."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.turns = 0
        """How often something was asked for in turn."""

    def current(self) -> AbstractContextManager[object]:
        """Nothing to choose on a CPU."""
        return nullcontext()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Whatever a CPU is asked for it does at once."""
        self.turns += 1
        yield

    def warm_up(self, work: Callable[[], object]) -> None:
        """Run it once."""
        work()

    def capture(self, work: Callable[[], _Outputs]) -> tuple[Callable[[], None], _Outputs]:
        """Run it now, and again at every replay."""
        outputs = work()

        def replay() -> None:
            for place, value in zip(cast("Iterable[torch.Tensor]", outputs), cast("Iterable[torch.Tensor]", work()), strict=True):
                place.copy_(value)

        return replay, outputs

    def wait(self) -> None:
        """A CPU is done when it returns."""


def eager_streams(device: torch.device, count: int) -> Sequence[EagerStream]:
    """In the place of `cuda_streams`."""
    return [EagerStream(device) for _ in range(count)]
