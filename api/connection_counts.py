"""How many connections at work each API worker of a service has, in memory that they share."""

from __future__ import annotations

import mmap
from typing import Final

_WORD_BYTES: Final = 8


def counts_bytes(workers: int) -> int:
    """How much memory that many workers share."""
    return workers * _WORD_BYTES


class ConnectionCounts:
    """A number for each worker, which it alone writes, and the supervisor when it has died.

    Args:
        file: `counts_bytes` of memory as a file descriptor, all zeros at first; it is not needed any more once this is made.
    """

    def __init__(self, file: int) -> None:
        # A word for each: 0 where no connections are taken, else one more than there are. Words are written and read whole.
        self._words = memoryview(mmap.mmap(file, 0)).cast("Q")

    def set(self, worker: int, connections: int) -> None:
        """Say how many connections a worker has, and that it takes more."""
        self._words[worker] = max(0, connections) + 1  # a number below none would be an exception where a connection ends

    def close(self, worker: int) -> None:
        """Say that a worker takes no more."""
        self._words[worker] = 0

    def open(self) -> dict[int, int]:
        """How many connections each worker has that takes more."""
        return {worker: word - 1 for worker, word in enumerate(self._words.tolist()) if word}
