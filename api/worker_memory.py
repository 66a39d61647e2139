"""What all API workers of a service share, made by the supervisor: memory for their limits (docs/decisions/0008) and their connections."""

from __future__ import annotations

from api.connection_counts import counts_bytes
from api.settings import ConfigurationError
from inference.sealed_memory import sealed_memory
from security.limit_windows import PLACES, memory_bytes, prepare_memory


def make_limit_memory(workers: int, places: int = PLACES) -> int:
    """Fresh memory for the `SharedWindows` of so many workers: a descriptor.

    Raises:
        ConfigurationError: the system has no room for it, or must not give so much (RLIMIT_FSIZE).
    """
    size_bytes = memory_bytes(workers, places)
    try:
        file = sealed_memory("lensgate-limits", size_bytes)
        prepare_memory(file)
    except OSError as error:
        raise _no_room("limits", size_bytes, error) from error
    return file


def make_connection_memory(workers: int) -> int:
    """Fresh memory for the `ConnectionCounts` of so many workers: a descriptor.

    Raises:
        ConfigurationError: as with limits.
    """
    size_bytes = counts_bytes(workers)
    try:
        return sealed_memory("lensgate-connections", size_bytes)
    except OSError as error:
        raise _no_room("connections", size_bytes, error) from error


def _no_room(what: str, size_bytes: int, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"{what} cannot be counted: {size_bytes} bytes of memory are not to be had: {error.strerror}")
