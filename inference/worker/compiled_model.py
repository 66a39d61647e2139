"""A model compiled ahead of time: a folder with a library for each batch size that is worth one of its own, and one for all others."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from inference.worker.aot_library import AotLibrary

ANY_SIZE: Final = "any"
"""The name, before `.so`, of the library for every batch size; the others have their size's number."""


def own_sizes(max_batch: int) -> tuple[int, ...]:
    """The batch sizes with a library of their own: those that a service meets when it is idle, and when it is busy.

    Known at compile time, a size makes for faster convolutions (docs/performance.md).
    """
    return tuple(sorted({1, max_batch}))


class CompiledModel:
    """Runs each batch with the library that is made for its size. Called as `AotLibrary` is.

    Args:
        folder: as `compile_process` leaves it.
        classes: how many logits there are for a picture.
        concurrency: how many calls run at once.

    Raises:
        ModelLoadError: there is no such library in it, or not one for this PyTorch.
    """

    def __init__(self, folder: Path, *, classes: int, concurrency: int) -> None:
        def opened(name: str) -> AotLibrary:
            return AotLibrary(folder / f"{name}.so", classes=classes, concurrency=concurrency)

        self._any = opened(ANY_SIZE)
        self._by_size = {int(path.stem): opened(path.stem) for path in folder.glob("[0-9]*.so")}

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """`[N, crop_px, crop_px, 3]` uint8 to `[N, classes]` float32 logits."""
        return self._by_size.get(pixels.shape[0], self._any)(pixels)
