"""What workers tell one another of their connections, in memory as the supervisor makes it."""

from __future__ import annotations

import os

from api.connection_counts import ConnectionCounts
from api.worker_memory import make_connection_memory


def connection_counts(workers: int = 1) -> ConnectionCounts:
    """Those of a service with so many workers, none of which takes connections yet."""
    file = make_connection_memory(workers)
    try:
        return ConnectionCounts(file)
    finally:
        os.close(file)
