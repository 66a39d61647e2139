"""Memory that is a file: it can be handed to other processes, and none of them can cut it short."""

from __future__ import annotations

import fcntl
import os
import resource


def sealed_memory(name: str, size_bytes: int) -> int:
    """A descriptor of fresh memory, all zeros, that is as large as it will ever be.

    Args:
        name: for people who look at `/proc/<pid>/maps`.
        size_bytes: a page takes no memory until it is first written to or read.

    Raises:
        OSError: the system has no room for it.
    """
    file = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        set_size(file, size_bytes)
        # Who reads a mapped file past its end is killed (SIGBUS): nobody must depend on another process there.
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(file)
        raise
    return file


def set_size(file: int, size_bytes: int) -> None:
    """Give memory that is a file its size, whatever the soft limit on the size of files (RLIMIT_FSIZE), which is meant for disks.

    Raises:
        OSError: the system has no room for it, or the hard limit forbids it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        os.ftruncate(file, size_bytes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
