"""What the GPU's table starts and ends: an engine, and generators."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ROOT, environment
from benchmarks.weights import random_weights

QUEUE_SIZE = 4096
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.05
_TAIL_LINES = 5


@dataclass(frozen=True)
class Options:
    """What is measured, and how long."""

    parts: Sequence[str]
    out: Path
    folder: Path
    model: str
    precision: str
    max_batch: int
    batches: Sequence[int]
    search: bool
    connections: Sequence[int]
    workers: int
    seconds: float
    part_s: float
    device: str

    @property
    def weights(self) -> Path:
        return random_weights(self.model, self.folder)


@contextmanager
def engine(options: Options, log_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """One engine process, as the supervisor starts it, and its socket. It is not ready yet."""
    folder = options.folder / "engine"
    folder.mkdir(exist_ok=True)
    socket = folder / "engine.sock"
    heard, pulse = os.pipe()
    settings = {
        "model": options.model,
        "weights": str(options.weights),
        "device": options.device,
        "precision": options.precision,
        "max_batch": options.max_batch,
        "queue_size": QUEUE_SIZE,
        "compile": "off",
    }
    config = {
        "name": "engine-0",
        "metrics_dir": None,
        "planned": False,
        "candidates": [settings],
        "gpu": None,
        "socket": str(socket),
        "connect_timeout_s": 10.0,
        "pulse": pulse,
        "log": {"level": "info", "format": "json"},
    }
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "api.engine_process"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=environment({}),
            pass_fds=(pulse,),
        )
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(config).encode() + b"\n")
            process.stdin.flush()
            yield process, socket
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # tells it that its supervisor is gone
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT_S)
            process.kill()
            process.wait()
            os.close(heard)
            os.close(pulse)


def all_at_once(processes: Sequence[tuple[Sequence[str], bytes]], check: Callable[[], None] = lambda: None) -> list[bytes]:
    """Run Python with each of these arguments and inputs at the same time; their outputs. `check` may raise while they run."""
    with ExitStack() as stack:
        started = []
        for arguments, sent in processes:
            command = [sys.executable, *arguments]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment({}))
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdin is not None
            process.stdin.write(sent)
            process.stdin.close()
            process.stdin = None
            started.append(process)
        while any(process.poll() is None for process in started):
            check()
            time.sleep(_POLL_S)
        outputs = [process.communicate()[0] for process in started]
        if any(process.returncode for process in started):
            raise RuntimeError(f"a generator ended with {[process.returncode for process in started]}")
        return outputs


def tail(log: Path) -> str:
    """How a log ends."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
