"""A model compiled ahead of time: a folder with a library for each of some batch sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from inference.worker.aot_library import AotLibrary


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """The batch sizes that a model is compiled for: the powers of two, and the largest.

    A size that is known at compile time makes for so much faster convolutions that more small batches are quicker than one of a size that
    is not (docs/performance.md).
    """
    return tuple(sorted({1 << exponent for exponent in range(max_batch.bit_length())} | {max_batch}))


def largest_size(sizes: tuple[int, ...], pictures: int) -> int:
    """The largest of the sizes, which are in order, that so many pictures fill."""
    return max(size for size in sizes if size <= pictures)


class CompiledModel:
    """Runs batches of any size, in pieces where there is no library for it. Called as `AotLibrary` is.

    Args:
        folder: as `compile_process` leaves it.
        classes: how many logits there are for a picture.
        concurrency: how many calls run at once.

    Raises:
        ModelLoadError: there is no library in it, or one that is not for this PyTorch.
    """

    def __init__(self, folder: Path, *, classes: int, concurrency: int) -> None:
        self._libraries = {int(path.stem): AotLibrary(path, classes=classes, concurrency=concurrency) for path in folder.glob("*.so")}
        self.sizes = tuple(sorted(self._libraries))
        """The batch sizes that run in one piece."""

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """`[N, crop_px, crop_px, 3]` uint8 to `[N, classes]` float32 logits."""
        library = self._libraries.get(pixels.shape[0])
        return library(pixels) if library is not None else torch.cat(list(self._in_pieces(pixels)))

    def _in_pieces(self, pixels: torch.Tensor) -> Iterator[torch.Tensor]:
        begin, end = 0, pixels.shape[0]
        while begin < end:
            size = largest_size(self.sizes, end - begin)
            yield self._libraries[size](pixels[begin : begin + size])
            begin += size
