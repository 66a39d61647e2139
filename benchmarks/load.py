"""The load generator: a process of its own, a closed loop over keep-alive connections, one request built beforehand.

    python -m benchmarks.load < job.json > result.json

It reads a `Job` and writes a `Result`. It is the same for every contender, and says what it cost, so that a table shows whether it stood in
the way. The server's processor time is read here, at the same two moments as the answers are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from pathlib import Path

import msgspec
import psutil
import uvloop

_POLL_S = 0.01
_ALL_REQUESTS_S = 1800.0
_PATIENCE_S = 30.0
"""A slow server gets so long for an answer on each connection, before the counting, in it, and after it."""


class Job(msgspec.Struct, kw_only=True):
    """What to send, to whom, for how long."""

    port: int
    request: str
    """A file with the bytes of one request, head and body."""
    connections: int
    seconds: float
    """How long answers are counted, after each connection had its first one and the loop has run for a third of that."""
    requests: int = 0
    """If more than 0: count until that many answers have come, instead of for some seconds."""
    server_pid: int
    expected_class: int


class Result(msgspec.Struct, kw_only=True):
    """What came back."""

    images: int
    images_per_s: float
    p50_ms: float
    p99_ms: float
    server_cpu_s: float
    """Of the whole process tree, in the counted time."""
    generator_cores: float
    """How many cores this process kept busy in the counted time."""
    other_cores: float
    """How many cores were busy with neither the server nor this process: then the result says more of them than of the server."""
    counted_s: float
    errors: int
    first_error: str


class _Answer(msgspec.Struct):
    class_id: int


_decode = msgspec.json.Decoder(_Answer).decode


class _Connection(asyncio.Protocol):
    def __init__(self, run: _Run) -> None:
        self._run = run
        self._received = b""
        self.sent_s = 0.0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's are asyncio.Transport by their methods only
        self.send()

    def send(self) -> None:
        self.sent_s = time.perf_counter()
        self.transport.write(self._run.request)

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        head_end = received.find(b"\r\n\r\n")
        if head_end >= 0:
            at = received.lower().find(b"content-length: ", 0, head_end)
            length = int(received[at + 16 : received.find(b"\r", at)]) if at >= 0 else 0
            body = received[head_end + 4 :]
            if len(body) >= length:
                self._received = b""
                self._run.answered(self, received[9:12], body)
                return
        self._received = received

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.lost(self)


class _Run:
    def __init__(self, job: Job) -> None:
        self.request = Path(job.request).read_bytes()
        self._job = job
        self._open: set[_Connection] = set()
        self._stopping = False
        self._counting = False
        self._latencies_s: list[float] = []
        self._answers = 0
        self._last_answer_s = 0.0
        self._errors = 0
        self._first_error = ""

    async def measure(self) -> Result:
        job = self._job
        loop = asyncio.get_running_loop()
        for _ in range(job.connections):
            _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", job.port)
            self._open.add(connection)
        await self._until(job.connections, at_least_s=0.0 if job.requests else job.seconds / 3)
        processes = _tree(job.server_pid)
        self._counting = True
        began_s, since_s = time.perf_counter(), self._last_answer_s
        server_cpu_s, own_cpu_s, busy_s, before = _cpu_s(processes), time.process_time(), _busy_s(), self._answers
        if job.requests:
            await self._until(before + job.requests, at_least_s=0.0, at_most_s=_ALL_REQUESTS_S)
        else:
            await self._until(before + job.connections, at_least_s=job.seconds)
        self._counting = False
        ended_s = time.perf_counter()
        server_cpu_s, own_cpu_s, busy_s = _cpu_s(processes) - server_cpu_s, time.process_time() - own_cpu_s, _busy_s() - busy_s
        until_s = self._last_answer_s
        await self._stop()
        ordered = sorted(self._latencies_s)
        return Result(
            images=len(ordered),
            # From answer to answer, not from clock to clock: answers come in batches, and a part of one must not count as a whole.
            images_per_s=len(ordered) / (until_s - since_s) if ordered else 0.0,
            p50_ms=_quantile(ordered, 0.50) * 1e3,
            p99_ms=_quantile(ordered, 0.99) * 1e3,
            server_cpu_s=server_cpu_s,
            generator_cores=own_cpu_s / (ended_s - began_s),
            other_cores=max(0.0, busy_s - server_cpu_s - own_cpu_s) / (ended_s - began_s),
            counted_s=ended_s - began_s,
            errors=self._errors,
            first_error=self._first_error,
        )

    def answered(self, connection: _Connection, status: bytes, body: bytes) -> None:
        now_s = time.perf_counter()
        self._answers += 1
        self._last_answer_s = now_s
        complaint = self._complaint(status, body)
        if complaint:
            self._complain(complaint)
        elif self._counting:
            self._latencies_s.append(now_s - connection.sent_s)
        if self._stopping:
            connection.transport.close()
        else:
            connection.send()

    def lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if not self._stopping:
            self._complain("the connection was closed")

    def _complain(self, complaint: str) -> None:
        self._errors += 1
        self._first_error = self._first_error or complaint

    def _complaint(self, status: bytes, body: bytes) -> str:
        if status != b"200":
            return f"{status.decode(errors='replace')}: {body[:300].decode(errors='replace')}"
        try:
            answer = _decode(body)
        except msgspec.MsgspecError as error:
            return f"no answer of the right form ({error}): {body[:300].decode(errors='replace')}"
        return "" if answer.class_id == self._job.expected_class else f"class {answer.class_id} instead of {self._job.expected_class}"

    async def _until(self, answers: int, *, at_least_s: float, at_most_s: float = _PATIENCE_S) -> None:
        # Polled: an event for every answer would make the generator dearer.
        began_s = time.perf_counter()
        while (took_s := time.perf_counter() - began_s) < at_most_s and self._open:
            if self._answers >= answers and took_s >= at_least_s:
                return
            await asyncio.sleep(_POLL_S)

    async def _stop(self) -> None:
        """Take what is still owed, so that the server is idle when another one has its turn."""
        self._stopping = True
        deadline_s = time.perf_counter() + _PATIENCE_S
        while self._open and time.perf_counter() < deadline_s:  # noqa: ASYNC110  as above
            await asyncio.sleep(_POLL_S)
        for connection in self._open:
            connection.transport.abort()


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def _cpu_s(processes: list[psutil.Process]) -> float:
    total_s = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total_s += times.user + times.system
    return total_s


def _busy_s() -> float:
    """Of all cores since the start of the system, what a hypervisor gave to others included."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))


def main() -> None:
    """Run the job on standard input."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(_Run(job).measure())))


if __name__ == "__main__":
    main()
