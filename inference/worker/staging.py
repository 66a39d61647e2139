"""The buffer where the pictures of a batch are put side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from inference.types import Pixels


class Staging:
    """`[max_batch, crop_px, crop_px, 3]` uint8 on the CPU; one thread's.

    Args:
        max_batch: the most pictures.
        crop_px: their side.
        pinned: in memory that a GPU copies from by itself.
    """

    def __init__(self, max_batch: int, crop_px: int, *, pinned: bool = False) -> None:
        self.tensor = torch.empty((max_batch, crop_px, crop_px, 3), dtype=torch.uint8, pin_memory=pinned)
        self._array = self.tensor.numpy()

    def fill(self, pixels: Sequence[Pixels]) -> torch.Tensor:
        """Copy 1 to `max_batch` pictures in and return the part of the buffer that they take.

        Raises:
            ValueError: there are too few or too many pictures, or one has another shape or type.
        """
        count, max_batch = len(pixels), len(self._array)
        if not 1 <= count <= max_batch:
            raise ValueError(f"a batch has 1 to {max_batch} pictures, not {count}")
        shape = self._array.shape[1:]
        for index, picture in enumerate(pixels):
            # numpy would stretch a smaller array to fit, without a word.
            if picture.shape != shape or picture.dtype != np.uint8:
                raise ValueError(f"a picture is {shape} uint8, not {picture.shape} {picture.dtype}")
            self._array[index] = picture
        return self.tensor[:count]
