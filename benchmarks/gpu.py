"""The GPU's table: the raw forward pass, the engine with pixels handed in, and the whole service. benchmarks/gpu.sh runs it.

    python -m benchmarks.gpu --out results

The service is `lensgate serve` with a token, limits that are counted and a JSON log; it is sent 58 KB JPEGs. A part that fails is told, and
the others are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.contenders import Contender, Model, start_lensgate
from benchmarks.grid import Cell, write_request
from benchmarks.load import Job, Result
from benchmarks.machine import describe_machine, machine
from benchmarks.pictures import jpeg
from benchmarks.processes import ROOT, environment, free_port
from benchmarks.references import Decode
from benchmarks.weights import EXPECTED_CLASS, random_weights

PARTS = ("forward", "pixels", "serve")
_QUEUE_SIZE = 4096
_GENERATORS = 4
"""One process cannot send as much as a GPU classifies."""
_STOP_TIMEOUT_S = 30


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
    connections: Sequence[int]
    workers: int
    seconds: float
    device: str

    @property
    def weights(self) -> Path:
        return random_weights(self.model, self.folder)


def main() -> None:
    """Measure, write, print."""
    options = _parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    jpeg("small", options.folder)
    _ = options.weights  # made now, so that no part has to
    found: dict[str, Any] = {"machine": machine(), "max_batch": options.max_batch, "precision": options.precision}
    lines = [describe_machine()]
    for name, measure in (("forward", _forward), ("pixels", _pixels), ("serve", _serve)):
        if name not in options.parts:
            continue
        began_s = time.monotonic()
        try:
            found[name], told = measure(options)
        except Exception as error:  # noqa: BLE001  whatever one part runs into, the machine is lent for minutes: the others are measured
            found[name], told = {"failed": str(error)}, [f"failed: {error}"]
        lines += ["", f"{name} ({time.monotonic() - began_s:.0f} s)", *told]
        # After each part: a call that is cut off still brings back what was measured.
        (options.out / "gpu.json").write_text(json.dumps(found, indent=1))
        (options.out / "gpu.txt").write_text("\n".join([*lines, "", *_ratios(found)]) + "\n")
    sys.stdout.write((options.out / "gpu.txt").read_text())


def _parse() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where gpu.txt and gpu.json go")
    parser.add_argument("--only", default="+".join(PARTS), help=f"parts, joined by +: {'+'.join(PARTS)}")
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench" / "gpu", help="where pictures, weights and logs are kept")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--batches", type=_numbers, default=[1, 2, 4, 8, 16, 32, 64, 128, 256], help="of the raw forward pass")
    parser.add_argument("--connections", type=_numbers, default=[1, 16, 64, 256])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="API workers; one where there is no redis-server")
    parser.add_argument("--seconds", type=float, default=8.0, help="of counting, in each row")
    parser.add_argument("--device", default="auto", help="cpu: to try this script out")
    values = vars(parser.parse_args())
    return Options(parts=values.pop("only").split("+"), **values)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _forward(options: Options) -> tuple[Any, list[str]]:
    """CUDA graphs alone."""
    arguments = ["--model", options.model, "--precision", options.precision, "--batches", ",".join(map(str, options.batches))]
    answer = _ask(["-m", "benchmarks.gpu_forward", str(options.weights), *arguments], options.out / "forward.log")
    columns = ("unfused_per_s", "unfused_two_streams_per_s", "fused_per_s", "fused_two_streams_per_s")
    told = [f"{answer['device']}, {answer['precision']}, images/s", _row("batch", [name.removesuffix("_per_s") for name in columns])]
    told += [_row(str(row["batch"]), [f"{row[name]:.0f}" if name in row else "-" for name in columns]) for row in answer["rows"]]
    return answer, told


def _pixels(options: Options) -> tuple[Any, list[str]]:
    """The engine process, with pixels handed in over its socket by several processes."""
    rows = []
    with _engine(options) as socket:
        for callers, in_flight in ((1, 1), (_GENERATORS, options.max_batch), (_GENERATORS, 2 * options.max_batch)):
            arguments = ["-m", "benchmarks.gpu_pixels", str(socket), "--in-flight", str(in_flight), "--seconds", str(options.seconds)]
            answers = [json.loads(output) for output in _all_at_once([(arguments, b"")] * callers)]
            rows.append(
                {
                    "in_flight": callers * in_flight,
                    "images_per_s": sum(answer["images_per_s"] for answer in answers),
                    "p50_ms": max(answer["p50_ms"] for answer in answers),
                    "generator_cores": max(answer["cores"] for answer in answers),
                }
            )
    columns = ("images_per_s", "p50_ms", "generator_cores")
    return rows, [_row("in flight", columns), *(_row(str(row["in_flight"]), [f"{row[name]:.2f}" for name in columns]) for row in rows)]


@contextmanager
def _engine(options: Options) -> Iterator[Path]:
    folder = options.folder / "engine"
    folder.mkdir(exist_ok=True)
    socket = folder / "engine.sock"
    settings = {
        "model": options.model,
        "weights": str(options.weights),
        "device": options.device,
        "precision": options.precision,
        "max_batch": options.max_batch,
        "queue_size": _QUEUE_SIZE,
        "compile": "off",
    }
    config = {
        "name": "engine-0",
        "metrics_dir": None,
        "candidates": [settings],
        "gpu": None,
        "socket": str(socket),
        "connect_timeout_s": 10.0,
        "log": {"level": "info", "format": "json"},
    }
    with (options.out / "engine.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "api.engine_process"], stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT, env=environment({})
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(config).encode() + b"\n")
        process.stdin.flush()
        try:
            yield socket
        finally:
            process.stdin.close()  # tells it that its supervisor is gone
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT_S)
            process.kill()


def _serve(options: Options) -> tuple[Any, list[str]]:
    """The whole service."""
    with _redis(options) as redis_url:
        workers = options.workers if redis_url else 1
        extra = {
            "LENSGATE_HTTP__WORKERS": str(workers),
            "LENSGATE_INFERENCE__DEVICE": options.device,
            "LENSGATE_INFERENCE__COMPILE": "off",
            "LENSGATE_INFERENCE__QUEUE_SIZE": str(_QUEUE_SIZE),
        }
        extra |= {"LENSGATE_SECURITY__RATE_LIMIT_STORAGE": redis_url} if redis_url else {}
        model = Model(options.weights, options.model, options.precision, options.max_batch)
        contender = start_lensgate(options.folder / "serve" / "lensgate", "", model, extra=extra)
        try:
            request = write_request(contender, "raw", "small", options.folder)
            rows = [_load(contender, request, connections, options.seconds) | {"workers": workers} for connections in options.connections]
            log = contender.tree.log_tail()
        finally:
            contender.tree.stop()
    (options.out / "serve.log").write_text(log + "\n")
    decode = Decode(options.folder)
    try:
        decoded = decode.measure(Cell("", "small", "raw", 1), options.seconds / 4)
    finally:
        decode.tree.stop()
    columns = ("images_per_s", "p50_ms", "p99_ms", "server_cores", "generator_cores", "errors")
    told = [
        f"{workers} API workers; ready after {contender.start_s:.1f} s; all cores decode {decoded['decode_per_s']:.0f} images/s",
        _row("connections", columns),
        *(_row(str(row["connections"]), [f"{row[name]:.2f}" for name in columns]) for row in rows),
        *(f"{row['connections']} connections: {row['first_error']}" for row in rows if row["first_error"]),
    ]
    return {"rows": rows, "start_s": contender.start_s} | decoded, told


def _load(contender: Contender, request: Path, connections: int, seconds: float) -> dict[str, Any]:
    generators = min(_GENERATORS, connections)
    jobs = [
        Job(
            port=contender.port,
            request=str(request),
            connections=connections // generators,
            seconds=seconds,
            server_pid=contender.tree.pid,
            expected_class=EXPECTED_CLASS,
        )
        for _ in range(generators)
    ]
    outputs = _all_at_once([(["-m", "benchmarks.load"], msgspec.json.encode(job)) for job in jobs])
    results = [msgspec.json.decode(output, type=Result) for output in outputs]
    return {
        "connections": connections,
        "images_per_s": sum(result.images_per_s for result in results),
        "p50_ms": max(result.p50_ms for result in results),
        "p99_ms": max(result.p99_ms for result in results),
        # Each of them has read the whole tree's.
        "server_cores": max(result.server_cpu_s / result.counted_s for result in results),
        "generator_cores": max(result.generator_cores for result in results),
        "errors": sum(result.errors for result in results),
        "first_error": next((result.first_error for result in results if result.first_error), ""),
    }


@contextmanager
def _redis(options: Options) -> Iterator[str | None]:
    """A Redis of its own for the limits of several workers; None where the program is not there."""
    program = shutil.which("redis-server")
    if program is None or options.workers == 1:
        yield None
        return
    port = free_port()
    arguments = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(options.folder)]
    with (options.out / "redis.log").open("wb") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait()


def _ask(arguments: Sequence[str], log: Path) -> Any:  # noqa: ANN401 # whatever JSON it answers
    with log.open("wb") as errors:
        run = subprocess.run(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=environment({}), check=False
        )
    if run.returncode:
        raise RuntimeError("\n".join(log.read_text(errors="replace").splitlines()[-5:]))
    return json.loads(run.stdout.splitlines()[-1])


def _all_at_once(processes: Sequence[tuple[Sequence[str], bytes]]) -> list[bytes]:
    """Run Python with each of these arguments and inputs at the same time; their outputs."""
    started = [
        subprocess.Popen([sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment({}))
        for arguments, _ in processes
    ]
    for process, (_, sent) in zip(started, processes, strict=True):
        assert process.stdin is not None
        process.stdin.write(sent)
        process.stdin.close()
        process.stdin = None
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"a generator ended with {[process.returncode for process in started]}")
    return outputs


def _row(first: str, rest: Sequence[str]) -> str:
    return f"{first:>12}" + "".join(f"{text:>22}" for text in rest)


def _ratios(found: Mapping[str, Any]) -> list[str]:
    """What issue 4 asks for, as far as it was measured."""
    told: list[str] = []

    def tell(name: str, value: Callable[[], float]) -> None:
        with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError):  # a part is missing or failed
            told.append(f"{name}: {value():.2f}")

    def forward_per_s() -> float:
        # What the engine may use: up to its largest batch.
        rows = [row for row in found["forward"]["rows"] if row["batch"] <= found["max_batch"]]
        return float(max(rate for row in rows for name, rate in row.items() if name != "batch"))

    def best(rows: Sequence[Mapping[str, float]]) -> float:
        return max(row["images_per_s"] for row in rows)

    tell("pixels handed in : raw CUDA graph (at least 0.90)", lambda: best(found["pixels"]) / forward_per_s())
    tell(
        "end to end : the smaller of raw CUDA graph and decode (at least 0.80)",
        lambda: best(found["serve"]["rows"]) / min(forward_per_s(), found["serve"]["decode_per_s"]),
    )
    tell("end to end, images/s (goal 6000)", lambda: best(found["serve"]["rows"]))
    tell("one connection, p50 in ms (under 5)", lambda: next(row["p50_ms"] for row in found["serve"]["rows"] if row["connections"] == 1))
    return told


if __name__ == "__main__":
    main()
