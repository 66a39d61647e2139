"""Keeps a process small: what large pictures took goes back to the system as soon as they are done with."""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""glibc's `<malloc.h>`; mallopt(3)."""
LARGE_BYTES: Final = 1024 * 1024
KEPT_BYTES: Final = 8 * LARGE_BYTES
"""How much free memory a heap may keep. glibc adjusts this by itself no longer once one of these is set, and 128 KiB would have every small
picture's buffers given back and taken anew: 160 page faults each, a fifth of its time (docs/performance.md)."""


def return_large_blocks() -> bool:
    """Have every large block of memory taken from the system for itself, and given back when it is freed.

    Left alone, glibc does so only up to the largest block that was ever freed, at most 32 MiB: after the first large picture, the blocks of
    all later ones come from heaps, in which a small block that lives on keeps everything below it.

    Returns:
        False where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES) == 1 and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES) == 1
