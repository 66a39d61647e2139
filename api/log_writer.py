"""Writes the log to a file descriptor from a thread of its own: a slow or full disk, or a reader that has stopped, holds nobody up."""

from __future__ import annotations

import atexit
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Final

MAX_HELD_CHARACTERS: Final = 4 * 1024 * 1024
"""About 6,000 lines: two seconds at the highest rate that one worker has been measured at."""
LAST_WORDS_S: Final = 1.0
"""How long the end of a process waits for its lines to be written."""

_WRITE_BYTES: Final = 4096
"""`PIPE_BUF` on Linux (pipe(7)): the most that is written to a pipe in one piece. Several processes share ours."""
_FILE_WRITE_BYTES: Final = 64 * 1024
"""To a file, which takes every write in one piece (write(2)). The interpreter's lock is let go of for each: fewer are faster."""
_LINGER_S: Final = 0.05
"""How long a line may wait for others, so that a busy process does not change threads for each."""
_NOTICE_EVERY_S: Final = 1.0


class LogWriter:
    """Takes lines from any thread, never waits for them to be written, and drops what finds no room.

    Has the methods of a text file that loggers use.

    Args:
        descriptor: where the lines go.
        max_held_characters: how much may wait to be written.
    """

    def __init__(self, descriptor: int, *, max_held_characters: int = MAX_HELD_CHARACTERS) -> None:
        self._descriptor = descriptor
        self._max_held = max_held_characters
        self._write_bytes = _FILE_WRITE_BYTES if stat.S_ISREG(os.fstat(descriptor).st_mode) else _WRITE_BYTES
        # Its lock is reentrant: the garbage collector may run while it is held, and what it destroys may log.
        self._changed = threading.Condition()
        self._lines: deque[str] = deque()
        self._held = 0
        self._idle = False
        self._hurry = False
        self._writing = False
        self._dropped = 0
        self._count: Callable[[int], object] | None = None
        self._tell: Callable[[int], object] | None = None
        self._untold = 0
        self._told_at_s = -_NOTICE_EVERY_S
        self._torn = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Take one line, or one event of several lines, with its line break at the end."""
        with self._changed:
            # What this thread itself says is how many lines are missing. There is always room for that.
            fits = self._held + len(text) <= self._max_held or threading.current_thread() is self._thread
            if fits:
                self._lines.append(text)
                self._held += len(text)
                if self._idle:
                    self._idle = False
                    self._changed.notify_all()
        if not fits:
            self._drop(1)
        return len(text)

    def flush(self) -> None:
        """Have what was taken written now. Does not wait for it."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()

    def isatty(self) -> bool:
        """Whether somebody reads along."""
        return os.isatty(self._descriptor)

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything is written; say whether it was in time. What could not be written counts as dropped, not as waiting."""
        self.flush()
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._writing, timeout_s)

    def on_drops(self, *, count: Callable[[int], object] | None = None, tell: Callable[[int], object] | None = None) -> None:
        """Have dropped lines noticed; what was dropped before is counted now.

        Args:
            count: called at once with how many were dropped, on the thread that logs.
            tell: called, at most once a second, when lines can be written again, with how many are missing in between.
        """
        self._tell = tell or self._tell
        if count is not None:
            with self._changed:
                self._count, before = count, self._dropped
            if before:
                count(before)

    def _drop(self, lines: int) -> None:
        with self._changed:
            self._dropped += lines
            self._untold += lines
            count = self._count
        if count is not None:
            count(lines)

    def _run(self) -> None:
        while True:
            lines = self._next_lines()
            lost = self._write_out(lines) if lines else 0
            self._failing = lost > 0
            if lost:
                self._drop(lost)
            else:
                self._tell_of_the_missing()

    def _next_lines(self) -> list[bytes]:
        """Wait for lines; none when it is time to say how many are missing."""
        with self._changed:
            self._writing = False
            if not self._lines:
                self._idle, self._hurry = True, False
                self._changed.notify_all()
                # Where lines cannot be written, neither can the number of those that are missing.
                is_due = self._untold and self._tell is not None and not self._failing
                self._changed.wait_for(lambda: self._lines, _NOTICE_EVERY_S if is_due else None)
                self._idle = False
                if self._lines:
                    self._changed.wait_for(lambda: self._hurry, _LINGER_S)
            self._writing = bool(self._lines)
            return self._take()

    def _take(self) -> list[bytes]:
        """The next lines, if there are any: as many as go into one write, and at least one."""
        lines: list[bytes] = []
        size = 0
        while self._lines:
            line = self._lines[0].encode("utf-8", "backslashreplace")
            size += len(line)
            if lines and size > self._write_bytes:
                break
            self._held -= len(self._lines.popleft())
            lines.append(line)
        return lines

    def _write_out(self, lines: list[bytes]) -> int:
        """Write them; return how many of them could not be."""
        # A full disk may have taken half a line: what comes next must not become the rest of it.
        data = b"\n" * self._torn + b"".join(lines)
        written = 0
        try:
            while written < len(data):
                try:
                    written += os.write(self._descriptor, data[written:])
                except BlockingIOError:  # whoever shares the pipe with us has made it so
                    poll = select.poll()
                    poll.register(self._descriptor, select.POLLOUT)
                    poll.poll()
        except OSError:  # no space left, or nobody reads any more
            self._torn = data[written - 1 : written] != b"\n" if written else self._torn
            left = min(len(data) - written, sum(map(len, lines)))
            lost = 0
            while left > 0:
                lost += 1
                left -= len(lines[-lost])
            return lost
        self._torn = False
        return 0

    def _tell_of_the_missing(self) -> None:
        now_s = time.monotonic()
        with self._changed:
            if not self._untold or self._tell is None or now_s - self._told_at_s < _NOTICE_EVERY_S:
                return
            untold, self._untold = self._untold, 0
            self._told_at_s = now_s
        self._tell(untold)


@cache
def standard_output() -> LogWriter:
    """This process's writer to its standard output. At the end of the process it gets a second to write what it holds."""
    # Not `sys.stdout`, which somebody may have replaced; it is None where the process was started without one.
    descriptor = os.open(os.devnull, os.O_WRONLY) if sys.__stdout__ is None else sys.__stdout__.fileno()
    writer = LogWriter(descriptor)
    atexit.register(writer.drain, LAST_WORDS_S)
    return writer
