"""The files in which the processes of one service keep their metrics, so that any API worker can show the sums of all.

They are named by the child, not by its pid: a child that was killed goes on with its own counts, and there are never more files. They are
made once, whole, by the supervisor: a process that is killed at any moment leaves nothing half-made, and a disk that fills up later changes
nothing (a write to memory that is mapped to a full disk would be SIGBUS).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter

SIZES_BYTES: Final = {"counter": 1 << 20, "histogram": 1 << 18, "gauge_sum": 1 << 16, "gauge_max": 1 << 16}
"""The kinds of files, by the names that prometheus_client gives them, each with room for every label that there can be: none ever grows."""

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # nosec B108  mkdtemp makes a folder of ours there
_GAUGES: Final = ("gauge_sum", "gauge_max")
_USED_BYTES: Final = struct.Struct("i")
"""What a file begins with: how much of it is used. All zeros is an empty file."""

_log: Final[structlog.typing.FilteringBoundLogger] = structlog.get_logger()


def make_metric_files(children: Iterable[str]) -> Path | None:
    """Make the files of every child, in a folder of their own.

    Returns:
        The folder; None where it cannot be made, so that each process counts for itself. The log says so.
    """
    names = tuple(children)
    for parent in (_SHARED_MEMORY, None):  # in memory where that is possible: nothing is written to a disk, and no full one matters
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix="lensgate-metrics-", dir=parent))
            for name in names:
                for kind, size_bytes in SIZES_BYTES.items():
                    _path(folder, kind, name).write_bytes(bytes(size_bytes))
        except OSError as error:
            reason = str(error)
            if folder is not None:
                remove_metric_files(folder)
            continue
        return folder
    _not_shared(reason)
    return None


def remove_metric_files(folder: Path | None) -> None:
    """Remove them. Processes that still count go on, for nobody."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def forget_gauges(folder: Path, name: str) -> None:
    """Empty the gauges of a child that has died: it holds nothing any more. Its counts stay."""
    for kind in _GAUGES:
        # Somebody may have swept /dev/shm (systemd's RemoveIPC does); that must end no service.
        with contextlib.suppress(FileNotFoundError), _path(folder, kind, name).open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
            content[: _USED_BYTES.size] = _USED_BYTES.pack(0)


def share_metrics(metrics_dir: str | None, name: str, *, planned: bool = False) -> Path | None:
    """Let every metric that this process makes from now on keep its value in its files. Call it before the first is made.

    Args:
        metrics_dir: the supervisor's folder; None where there is none.
        name: this child's.
        planned: it is started to replace one that has not died.

    Returns:
        The folder; None where there is none, or it is gone: this process then counts for itself.
    """
    if metrics_dir is None:
        return None
    folder = Path(metrics_dir)
    # Here, because the supervisor imports this file too, and has no need of it.
    from prometheus_client import values

    try:
        with _path(folder, "counter", name).open("rb") as file:
            was_here_before = _USED_BYTES.unpack(file.read(_USED_BYTES.size))[0] > 0
    except FileNotFoundError as error:
        _not_shared(str(error))
        return None
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics_dir
    shared: Any = values.MultiProcessValue(lambda: name)  # type: ignore[no-untyped-call]
    values.ValueClass = shared
    restarts().labels(name).inc(was_here_before and not planned)
    return folder


def restarts(registry: CollectorRegistry | None = None) -> Counter:
    """The metric that every child has."""
    from prometheus_client import Counter

    return Counter("lensgate_restarts_total", "How often a process died and was started again.", ["process"], registry=registry)


def log_drops(registry: CollectorRegistry | None = None) -> Counter:
    """The metric of every child's log."""
    from prometheus_client import Counter

    return Counter(
        "lensgate_log_drops_total", "Lines of the log that were dropped, because they could not be written fast enough.", registry=registry
    )


def _not_shared(reason: str) -> None:
    _log.warning("metrics_not_shared", reason=reason, effect="/metrics shows what the API worker that answers has counted, and no more")


def _path(folder: Path, kind: str, name: str) -> Path:
    return folder / f"{kind}_{name}.db"
