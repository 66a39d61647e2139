"""A disk that can be full: a tmpfs of its own where that may be mounted, else a limit of 0 bytes a file on the processes that matter."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

_SIZE_BYTES: Final = 2 << 20


class Disk:
    """A small disk at `folder`."""

    def __init__(self, folder: Path, *, mounted: bool) -> None:
        self.folder = folder
        self.mounted = mounted

    @contextmanager
    def full(self, processes: Sequence[psutil.Process]) -> Iterator[list[str]]:
        """While the block runs, `processes` can write nothing to it. The value goes before a command that must not either."""
        if self.mounted:
            yield from self._filled()
            return
        former = [process.rlimit(psutil.RLIMIT_FSIZE) for process in processes]
        for process, (_, hard) in zip(processes, former, strict=True):
            process.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
        try:
            yield ["prlimit", "--fsize=0:"]
        finally:
            for process, limits in zip(processes, former, strict=True):
                process.rlimit(psutil.RLIMIT_FSIZE, limits)

    def _filled(self) -> Iterator[list[str]]:
        ballast = self.folder / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                while file.write(bytes(1 << 16)):  # the last write is short, then there is no space for any
                    pass
        except OSError:
            assert shutil.disk_usage(self.folder).free == 0
        try:
            yield []
        finally:
            ballast.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """Mount one at `folder`, where that is allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE_BYTES}", "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield Disk(folder, mounted=mounted)
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
