"""The parts of the GPU's table. Each yields its rows one by one, and notes what holds for all of them in `facts`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.contenders import Contender, Model, start_lensgate
from benchmarks.gpu_processes import QUEUE_SIZE, Options, all_at_once, engine, tail
from benchmarks.grid import Cell, write_request
from benchmarks.load import Job, Result
from benchmarks.processes import ROOT, environment
from benchmarks.references import Decode
from benchmarks.weights import EXPECTED_CLASS

_GENERATORS = 4
"""One process cannot send as much as a GPU classifies."""

Row = dict[str, Any]


def _serve(options: Options, facts: dict[str, Any]) -> Iterator[Row]:
    """The whole service."""
    with _decoding(options) as decode:
        facts["decode_per_s"] = round(decode.measure(Cell("", "small", "raw", 1), options.seconds / 4)["decode_per_s"], 1)
    with ExitStack() as stack:
        facts["workers"] = options.workers
        extra = {
            "LENSGATE_INFERENCE__DEVICE": options.device,
            "LENSGATE_INFERENCE__COMPILE": "off",
            "LENSGATE_INFERENCE__QUEUE_SIZE": str(QUEUE_SIZE),
        }
        model = Model(options.weights, options.model, options.precision, options.max_batch)
        contender = start_lensgate(options.folder / "serve" / "lensgate", "", model, workers=options.workers, extra=extra)
        stack.callback(contender.tree.stop)
        stack.callback(lambda: (options.out / "serve.log").write_text(contender.tree.log_tail() + "\n"))
        facts["start_s"] = round(contender.start_s, 1)
        request = write_request(contender, "raw", "small", options.folder)
        for connections in options.connections:
            yield _load(contender, request, connections, options.seconds)


def _pixels(options: Options, facts: dict[str, Any]) -> Iterator[Row]:
    """The engine process, with pixels handed in over its socket by several processes."""
    del facts
    log = options.out / "engine.log"
    with engine(options, log) as (process, socket):

        def check() -> None:
            if process.poll() is not None:
                raise RuntimeError(f"the engine has ended:\n{tail(log)}")

        for callers, in_flight in ((1, 1), (_GENERATORS, options.max_batch), (_GENERATORS, 2 * options.max_batch)):
            arguments = ["-m", "benchmarks.gpu_pixels", str(socket), "--in-flight", str(in_flight), "--seconds", str(options.seconds)]
            arguments += ["--ready-timeout-s", str(options.part_s)]
            answers = [json.loads(output) for output in all_at_once([(arguments, b"")] * callers, check)]
            yield {
                "in_flight": callers * in_flight,
                "images_per_s": sum(answer["images_per_s"] for answer in answers),
                "p50_ms": max(answer["p50_ms"] for answer in answers),
                "generator_cores": max(answer["cores"] for answer in answers),
            }


def _forward(options: Options, facts: dict[str, Any]) -> Iterator[Row]:
    """CUDA graphs alone."""
    arguments = ["--model", options.model, "--precision", options.precision, "--batches", ",".join(map(str, options.batches))]
    arguments += [] if options.search else ["--no-search"]
    log = options.out / "forward.log"
    with ExitStack() as stack:
        errors = stack.enter_context(log.open("wb"))
        command = [sys.executable, "-m", "benchmarks.gpu_forward", str(options.weights), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=environment({}))
        stack.callback(process.kill)
        assert process.stdout is not None
        facts |= json.loads(process.stdout.readline() or b"{}")
        yield from map(json.loads, process.stdout)
        if process.wait():
            raise RuntimeError(tail(log))


PARTS: Mapping[str, Callable[[Options, dict[str, Any]], Iterator[Row]]] = {"serve": _serve, "pixels": _pixels, "forward": _forward}
"""By name, the most important first."""


@contextmanager
def _decoding(options: Options) -> Iterator[Decode]:
    decode = Decode(options.folder)
    try:
        yield decode
    finally:
        decode.tree.stop()


def _load(contender: Contender, request: Path, connections: int, seconds: float) -> Row:
    generators = min(_GENERATORS, connections)
    job = Job(
        port=contender.port,
        request=str(request),
        connections=connections // generators,
        seconds=seconds,
        server_pid=contender.tree.pid,
        expected_class=EXPECTED_CLASS,
    )
    outputs = all_at_once([(["-m", "benchmarks.load"], msgspec.json.encode(job))] * generators)
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
