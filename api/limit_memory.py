"""The memory in which all API workers of a service count together, made by the supervisor (docs/decisions/0008)."""

from __future__ import annotations

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
        raise ConfigurationError(f"limits cannot be counted: {size_bytes} bytes of memory are not to be had: {error.strerror}") from error
    return file
