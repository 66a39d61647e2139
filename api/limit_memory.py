"""The memory in which all API workers of a service count together, made by the supervisor (docs/decisions/0008)."""

from __future__ import annotations

from inference.sealed_memory import sealed_memory
from security.limit_windows import MAX_KEYS, memory_bytes, prepare_memory


def make_limit_memory(max_keys: int = MAX_KEYS) -> int:
    """Fresh memory for `SharedWindows`: a descriptor.

    Raises:
        OSError: the system has no room for it.
    """
    file = sealed_memory("lensgate-limits", memory_bytes(max_keys))
    prepare_memory(file)
    return file
