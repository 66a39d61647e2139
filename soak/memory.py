"""What every process of the service holds over its life, and whether it grows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from support.held import API, ENGINE

JUDGED_FROM_S: Final = 300.0
"""A shorter life says little: a third of it is still the start."""
MAX_GROWTH: Final = 0.02
"""Issue 5: under 2 % more at the end than at a third of the way."""
_WINDOW: Final = 0.1
"""Of a life: the samples around a third of it, and the last ones. Their median, since what is in flight comes and goes."""
_NAMES: Final = {"api.cli": "supervisor", API: "API worker", ENGINE: "engine"}


class Sample(NamedTuple):
    """One look into `/proc/<pid>/smaps_rollup`, in bytes."""

    at_s: float
    written_bytes: int
    """Its own pages that it has written (`Private_Dirty`): what it really holds.

    Not its whole USS: that also has the pages of library files, which become its own or shared as other programs come and go.
    """


@dataclass
class Life:
    """One process from its start to its end."""

    name: str
    pid: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """From the first look to the last."""
        return self.samples[-1].at_s - self.samples[0].at_s if self.samples else 0.0

    @property
    def is_judged(self) -> bool:
        """Whether it is old enough."""
        return self.seconds >= JUDGED_FROM_S

    @property
    def third_bytes(self) -> float:
        """At a third of the way."""
        return self._median(1 / 3 - _WINDOW / 2, 1 / 3 + _WINDOW / 2)

    @property
    def end_bytes(self) -> float:
        """At the end."""
        return self._median(1 - _WINDOW, 1)

    @property
    def growth(self) -> float:
        """Of the end over the third; 0.02 is 2 % more."""
        return self.end_bytes / self.third_bytes - 1

    def _median(self, since: float, until: float) -> float:
        began_s, seconds = self.samples[0].at_s, self.seconds or 1.0
        within = [one.written_bytes for one in self.samples if since <= (one.at_s - began_s) / seconds <= until]
        return statistics.median(within or [self.samples[-1].written_bytes])


class MemoryLog:
    """Looks at a process and all its descendants that are Lensgate's.

    Args:
        supervisor: the process of `lensgate serve`.
    """

    def __init__(self, supervisor: psutil.Process) -> None:
        self._supervisor = supervisor
        self.lives: dict[tuple[int, float], Life] = {}

    def look(self) -> None:
        """Take a sample of each process that runs now."""
        for process in (self._supervisor, *self._supervisor.children(recursive=True)):
            try:
                name = _name(process.cmdline())
                key = (process.pid, process.create_time())
                sample = _sample(process.pid)
            except (psutil.Error, OSError):  # it has just ended
                continue
            if name is not None and sample is not None:
                self.lives.setdefault(key, Life(name, process.pid)).samples.append(sample)


def too_big(lives: Sequence[Life]) -> list[Life]:
    """Those that have grown by more than is allowed."""
    return [life for life in lives if life.is_judged and life.growth >= MAX_GROWTH]


def _name(arguments: Sequence[str]) -> str | None:
    return next((_NAMES[one] for one in arguments if one in _NAMES), None)


def _sample(pid: int) -> Sample | None:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, *rest = line.split()
        if name == "Private_Dirty:":
            return Sample(time.monotonic(), int(rest[0]) * 1024)
    return None
