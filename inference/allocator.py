"""How much freed memory a process keeps: little where things live on beside large pictures, one picture's worth where nothing else does."""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""glibc's `<malloc.h>`; mallopt(3)."""
_MIB: Final = 1024 * 1024


def return_large_blocks() -> bool:
    """Have every block of 1 MiB or more taken from the system for itself, and given back when it is freed.

    Left alone, glibc does so only up to the largest block that was ever freed, at most 32 MiB: after the first large picture, the blocks of
    all later ones come from heaps, in which a small block that lives on keeps everything below it.

    Returns:
        False where the C library is another one.
    """
    # 8 MiB: glibc adjusts this by itself no longer once the other is set, and 128 KiB would have every small picture's buffers given back
    # and taken anew: 160 page faults each, a fifth of its time (docs/performance.md).
    return _set(large_bytes=_MIB, kept_bytes=8 * _MIB)


def keep_a_picture() -> bool:
    """For a process in which nothing outlives a picture: only blocks of 8 MiB are given back, so that a phone's photograph needs none anew.

    Returns:
        False where the C library is another one.
    """
    return _set(large_bytes=8 * _MIB, kept_bytes=16 * _MIB)


def _set(*, large_bytes: int, kept_bytes: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, large_bytes) == 1 and mallopt(_M_TRIM_THRESHOLD, kept_bytes) == 1
