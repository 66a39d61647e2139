"""The GPU's table: the whole service, the engine with pixels handed in, and the raw forward pass. benchmarks/gpu.sh runs it.

    python -m benchmarks.gpu --out results

The service is `lensgate serve` with a token, limits that are counted and a JSON log; it is sent 58 KB JPEGs. The machine is lent for
minutes: every row is written as soon as it is measured, and a part that fails or exceeds its time is told, and the others are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts import PARTS
from benchmarks.gpu_processes import Options
from benchmarks.machine import describe_machine, machine
from benchmarks.pictures import jpeg
from benchmarks.processes import ROOT

_COLUMNS = {
    "serve": ("connections", "images_per_s", "p50_ms", "p99_ms", "server_cores", "generator_cores", "errors", "first_error"),
    "pixels": ("in_flight", "images_per_s", "p50_ms", "generator_cores"),
    "forward": ("batch", "unfused_per_s", "unfused_two_streams_per_s", "fused_per_s", "fused_two_streams_per_s", "error"),
}


def main() -> None:
    """Measure, write, print."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    options.folder.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    jpeg("small", options.folder)
    _ = options.weights  # made now, so that no part has to
    found: dict[str, Any] = {"machine": machine(), "max_batch": options.max_batch, "precision": options.precision}
    for name in options.parts:
        _measure(name, options, found)
    sys.stdout.write((options.out / "gpu.txt").read_text())


def _parse() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where gpu.txt and gpu.json go")
    parser.add_argument("--only", default="+".join(PARTS), help=f"parts, joined by +: {'+'.join(PARTS)}")
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench" / "gpu", help="where pictures, weights and logs are kept")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--precision", default="fp16", help="fp16 is what PRECISION=auto takes on a GPU")
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--batches", type=_numbers, default=[1, 8, 32, 64, 128, 256], help="of the raw forward pass")
    parser.add_argument("--no-search", dest="search", action="store_false", help="raw forward pass: without cuDNN's search for algorithms")
    parser.add_argument("--connections", type=_numbers, default=[1, 16, 64, 256])
    parser.add_argument("--workers", type=int, default=max(1, len(os.sched_getaffinity(0)) // 2), help="API workers")
    parser.add_argument("--seconds", type=float, default=6.0, help="of counting, in each row")
    parser.add_argument("--part-s", type=float, default=105.0, help="how many seconds each part may take")
    parser.add_argument("--device", default="cuda", help="cpu: to try this script out; there is no raw forward pass then")
    values = vars(parser.parse_args())
    parts = [part for part in values.pop("only").split("+") if values["device"] != "cpu" or part != "forward"]
    return Options(parts=parts, **values)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _measure(name: str, options: Options, found: dict[str, Any]) -> None:
    """Run one part. Whatever it runs into, what it had measured until then is kept."""
    began_s = time.monotonic()
    part = found[name] = {"rows": []}

    def write() -> None:
        part["took_s"] = round(time.monotonic() - began_s, 1)
        (options.out / "gpu.json").write_text(json.dumps(found, indent=1))
        (options.out / "gpu.txt").write_text("\n".join([describe_machine(), *_told(found), "", *_ratios(found)]) + "\n")

    try:
        with _limited(options.part_s):
            for row in PARTS[name](options, part):
                part["rows"].append(row)
                write()
    except Exception as error:  # noqa: BLE001  as above
        part["failed"] = f"{type(error).__name__}: {error}"
    write()


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError, whatever this thread waits for, when so much time is over."""

    def expire(*_: object) -> None:
        raise TimeoutError(f"not done within {seconds:g} s")

    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _told(found: Mapping[str, Any]) -> Iterator[str]:
    for name, columns in _COLUMNS.items():
        part = found.get(name)
        if part is None:
            continue
        facts = "; ".join(f"{fact} {value}" for fact, value in part.items() if fact not in {"rows", "failed"})
        yield from ("", f"{name}: {facts}", _line([column.removesuffix("_per_s") for column in columns]))
        yield from (_line([_text(row.get(column, "-")) for column in columns]) for row in part["rows"])
        if "failed" in part:
            yield f"failed: {part['failed']}"


def _text(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>22}" for cell in cells).rstrip()


def _ratios(found: Mapping[str, Any]) -> list[str]:
    """What issue 4 asks for, as far as it was measured."""
    told: list[str] = []

    def tell(name: str, value: Callable[[], float]) -> None:
        with contextlib.suppress(KeyError, ValueError, ZeroDivisionError, StopIteration):  # a part or a row is missing
            told.append(f"{name}: {value():.2f}")

    def forward_per_s() -> float:
        # What the engine may use: up to its largest batch.
        rows = [row for row in found["forward"]["rows"] if row["batch"] <= found["max_batch"]]
        return float(max(rate for row in rows for name, rate in row.items() if name.endswith("_per_s")))

    def best(part: str) -> float:
        return float(max(row["images_per_s"] for row in found[part]["rows"]))

    tell("pixels handed in : raw CUDA graph (at least 0.90)", lambda: best("pixels") / forward_per_s())
    tell(
        "end to end : the smaller of raw CUDA graph and decode (at least 0.80)",
        lambda: best("serve") / min(forward_per_s(), found["serve"]["decode_per_s"]),
    )
    tell("end to end, images/s (goal 6000)", lambda: best("serve"))
    tell(
        "one connection, p50 in ms (under 5)",
        lambda: next(float(row["p50_ms"]) for row in found["serve"]["rows"] if row["connections"] == 1),
    )
    return told


if __name__ == "__main__":
    main()
