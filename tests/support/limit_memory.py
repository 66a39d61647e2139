"""Memory for limits, as the supervisor makes it for its workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from api.worker_memory import make_limit_memory
from security.limit_windows import PLACES


@contextmanager
def limit_memory(workers: int = 1, places: int = PLACES) -> Iterator[int]:
    """A descriptor, closed at the end."""
    file = make_limit_memory(workers, places)
    try:
        yield file
    finally:
        os.close(file)
