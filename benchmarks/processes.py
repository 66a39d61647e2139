"""Starts what is measured, halts it while others have their turn, and weighs it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

ROOT = Path(__file__).resolve().parent.parent
_LINES, _LINE = 15, 300
"""How much of a log goes into a message."""
_STOP_S = 10.0
_START_TIMEOUT_S = 600.0
"""A first compilation of every batch size takes minutes on two cores."""


class StartFailed(Exception):
    """A process did not become ready; the message ends with its log."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours without any setting of Lensgate's, with the repository to import from, and what we import from ourselves."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LENSGATE_")}
    path = os.pathsep.join(filter(None, (extra.get("PYTHONPATH"), str(ROOT), os.environ.get("PYTHONPATH"))))
    return inherited | dict(extra) | {"PYTHONPATH": path}


class Tree:
    """A process and its descendants, in `folder`, with `<name>.log` for what they say.

    Args:
        name: for messages and the log file.
        arguments: of Python.
        folder: the working directory.
        extra: additions to the environment.
        speaks: True for one that is asked line by line on its standard input and output (`ask`).
    """

    def __init__(self, name: str, arguments: Sequence[str], folder: Path, extra: Mapping[str, str], *, speaks: bool = False) -> None:
        self.name = name
        folder.mkdir(parents=True, exist_ok=True)
        self._log_path = folder / f"{name}.log"
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=environment(extra),
                stdin=subprocess.PIPE if speaks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if speaks else log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.stop()

    def processes(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def wait_for(self, port: int, path: str) -> float:
        """Wait until a GET of `path` is answered 200; return the seconds."""
        began_s = time.monotonic()
        while time.monotonic() < began_s + _START_TIMEOUT_S:
            if self._process.poll() is not None:
                raise StartFailed(f"{self.name} has ended:\n{self.log_tail()}")
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(_connect(port)) as connection:
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return time.monotonic() - began_s
            time.sleep(0.02)
        raise StartFailed(f"{self.name} was not ready after {_START_TIMEOUT_S:.0f} s:\n{self.log_tail()}")

    def ask(self, question: Mapping[str, Any]) -> Any:  # noqa: ANN401 # whatever JSON it answers
        """Write a line of JSON, read a line of JSON."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise StartFailed(f"{self.name} has ended:\n{self.log_tail()}")
        return json.loads(line)

    def halt(self) -> None:
        """Take it off the processor, without ending it."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def pss_mib(self) -> float:
        """The memory of the tree; what its processes share counts once."""
        return sum(_pss_bytes(process) for process in self.processes()) / 2**20

    def log_tail(self) -> str:
        """The last lines of the log that are about no request."""
        lines = [line for line in self._log_path.read_text(errors="replace").splitlines() if '"event":"request"' not in line]
        return "\n".join(line[:_LINE] for line in lines[-_LINES:])

    def stop(self) -> None:
        """The end of its input to one that speaks, SIGTERM to others; SIGKILL to whatever of the tree is left after a while."""
        processes = self.processes()
        self.resume()
        if self._process.stdin is None:
            self._process.terminate()
        else:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        _, left = psutil.wait_procs(processes, timeout=_STOP_S)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=_STOP_S)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _signal(self, number: int) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def _connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=10)


def _pss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, AttributeError):  # gone, or a system that does not count it
        return 0
