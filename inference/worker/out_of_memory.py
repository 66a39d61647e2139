"""What is done when a device has no memory left: smaller batches, at the start and in service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import numpy as np
import structlog
import torch

from inference.types import Pixels
from inference.worker.lane import TopClasses

_log: Final = structlog.get_logger()

_Built = TypeVar("_Built")


def ran_out_of_memory(error: BaseException) -> bool:
    """True for torch's error, for CUDA's own, and for one that came on top of it: the end of a capture that lacked memory fails as well."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, torch.OutOfMemoryError) or (isinstance(at, RuntimeError) and "out of memory" in str(at).lower()):
            return True
        at = at.__cause__ or at.__context__
    return False


def may_lack_memory(error: BaseException) -> bool:
    """As `ran_out_of_memory`, and for what cuDNN says where it has no engine for a shape, and also where memory for one is short."""
    return ran_out_of_memory(error) or "unable to find an engine" in str(error)


def largest_that_fits(
    max_batch: int, build: Callable[[int], _Built], lacked_memory: Callable[[BaseException], bool] = ran_out_of_memory
) -> tuple[_Built, int]:
    """Build for batches of up to `max_batch`, of half as many when memory does not suffice, and so on.

    Args:
        max_batch: the most pictures at once that are wanted.
        build: builds for so many; raises torch's RuntimeError where it cannot.
        lacked_memory: whether that error means a lack of memory.

    Returns:
        What was built, and for how many.

    Raises:
        RuntimeError: torch's, when not even a batch of one fits, or for another reason.
    """
    while True:
        try:
            return build(max_batch), max_batch
        except RuntimeError as error:
            if max_batch == 1 or not lacked_memory(error):
                raise
        # Outside of the handler, whose error holds on to what was built so far.
        max_batch //= 2
        _log.warning("max_batch_lowered", max_batch=max_batch, reason="the device's memory does not suffice for twice as many")


def run_in_halves(run: Callable[[Sequence[Pixels]], TopClasses], pixels: Sequence[Pixels]) -> TopClasses:
    """Run a batch, and when memory does not suffice its two halves, one after the other, and so on.

    Raises:
        RuntimeError: torch's, when not even a batch of one fits, or for another reason.
    """
    try:
        return run(pixels)
    except RuntimeError as error:
        if len(pixels) == 1 or not ran_out_of_memory(error):
            raise
    _log.warning("batch_halved", batch_size=len(pixels), reason="the device's memory does not suffice")
    middle = len(pixels) // 2
    halves = [run_in_halves(run, half) for half in (pixels[:middle], pixels[middle:])]
    return np.concatenate([ids for ids, _ in halves]), np.concatenate([probabilities for _, probabilities in halves])
