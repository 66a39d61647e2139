"""Every speed that is claimed, measured in one run: Lensgate, and what a user would pick instead, in turns.

    python -m benchmarks [--only real] [--rounds 3] [--seconds 2] [--short] [--check]

Parts: `gate` (what its layers cost), `real` (the whole service, with the raw forward pass), `model` (the model stubbed), `model,decode`
(model and decoder stubbed), `memory`. Everything it makes lies in the folder `.bench`; the numbers in `.bench/results.json`, and as
Markdown in `.bench/results.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import gate_cost
from benchmarks.chart import draw
from benchmarks.contenders import QUICK_START
from benchmarks.grid import Options
from benchmarks.machine import describe_machine, machine
from benchmarks.markdown import as_markdown
from benchmarks.memory import ENGINE_REQUESTS, WORKER_REQUESTS, engine_memory, memory_targets, worker_memory
from benchmarks.parts import CONTENDERS, Choice, Found, run_real, run_stubbed
from benchmarks.pictures import SIZES
from benchmarks.processes import ROOT
from benchmarks.references import BATCHES
from benchmarks.report import show_disturbance, show_forward, show_grid, show_references, show_targets
from benchmarks.targets import Target, speed_targets

PARTS = ("gate", "real", "model", "model,decode", "memory")


def main() -> int:
    """Run the command line; the exit status is 1 where an answer was wrong, and with `--check` also where a target is missed."""
    arguments = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    console = Console(width=None if sys.stdout.isatty() else 170, highlight=False)
    began_s = time.monotonic()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "run", ignore_errors=True)

    def tell(what: str) -> None:
        print(f"[{time.monotonic() - began_s:6.0f} s] {what}", file=sys.stderr, flush=True)

    options = Options(
        folder=folder,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        pictures=arguments.pictures,
        bodies=arguments.bodies,
        connections=arguments.connections,
        tell=tell,
    )
    if arguments.short:
        # LitServe's two real forms would take most of the minute; stubbed it is there.
        real = tuple(name for name in arguments.contenders if not name.startswith("litserve"))
        choice = Choice(arguments.contenders, real, QUICK_START, ("bf16",), ("eager",), (1, 2), warm_start=False)
    else:
        choice = Choice(
            arguments.contenders,
            arguments.contenders,
            settings=dict(one.split("=", 1) for one in arguments.set),
            precisions=arguments.precisions,
            modes=arguments.modes,
            batches=arguments.batches,
            warm_start=arguments.warm_start,
        )
    measured, targets = _measure(console, options, choice, arguments.parts, short=arguments.short)
    results: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "seconds": options.seconds}
    results |= {"wall_s": time.monotonic() - began_s} | measured | {"targets": [target.as_json() for target in targets]}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.svg").write_text(draw(results))
    (folder / "results.md").write_text(as_markdown(results, describe_machine()))
    show_targets(console, targets)
    show_disturbance(console, results["servers"])
    console.print(
        f"{describe_machine()}\n{options.rounds} rounds; {results['wall_s']:.0f} s; {os.path.relpath(folder)}/results.json, .md and .svg"
    )
    wrong = any(row["errors"] for row in results["servers"])
    return int(wrong or (arguments.check and not all(target.met for target in targets)))


def _measure(console: Console, options: Options, choice: Choice, parts: list[str], *, short: bool) -> tuple[dict[str, Any], list[Target]]:
    found = Found()
    results: dict[str, Any] = {}
    if "gate" in parts:
        seen_us, new_us = gate_cost.measure(*((5, 3) if short else (50, 120)))
        results["gate_us"] = {"token seen before": seen_us, "new token": new_us}
        found.targets += [
            Target("µs of the gate, token seen before", seen_us, gate_cost.SEEN_TARGET_US, at_least=False),
            Target("µs of the gate, new token", new_us, gate_cost.NEW_TARGET_US, at_least=False),
        ]
    if "real" in parts:
        run_real(found, options, choice)
    # Without a model there are many more answers a second, and half the time is enough.
    halved = replace(options, seconds=options.seconds / 2)
    if "model" in parts:
        run_stubbed(found, "model", halved, choice)
    if "model,decode" in parts:
        run_stubbed(found, "model,decode", halved, choice)
    results |= {
        "raw_forward": found.forward,
        "starts_s": found.starts_s,
        "servers": [row.as_json() for row in found.rows],
        "references": found.references_as_json(),
    }
    if found.forward:
        show_forward(console, found.forward)
    show_grid(console, results["servers"])
    if results["references"]:
        show_references(console, results["references"])
    if "memory" in parts:
        options.tell("memory")
        worker = worker_memory(options.folder, 200 if short else WORKER_REQUESTS)
        engine = engine_memory(options.folder, 500 if short else ENGINE_REQUESTS)
        results["memory"] = {"worker": worker, "engine": engine}
        found.targets += memory_targets(worker, engine)
    return results, speed_targets(found.rows, found.references) + found.targets


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", dest="parts", type=lambda text: text.split("+"), help=f"parts, joined by +: {'+'.join(PARTS)}")
    parser.add_argument("--contenders", type=_texts, help=",".join(CONTENDERS))
    parser.add_argument("--pictures", type=_texts, help=",".join(SIZES))
    parser.add_argument("--bodies", type=_texts, help="raw,json")
    parser.add_argument("--connections", type=_numbers, help="1,4,16,64")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of Lensgate; as often as you like")
    parser.add_argument("--precisions", type=_texts, default=[], help="of the raw forward pass: fp32,bf16")
    parser.add_argument("--modes", type=_texts, default=["eager", "compiled"], help="of the raw forward pass")
    parser.add_argument("--batches", type=_numbers, default=list(BATCHES), help="of the raw forward pass")
    parser.add_argument("--no-warm-start", dest="warm_start", action="store_false", help="start Lensgate once, and do not time it")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of counting, in each turn")
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench", help="where everything is kept")
    parser.add_argument("--short", action="store_true", help="only show that it works: a minute, and no figures worth keeping")
    parser.add_argument("--check", action="store_true", help="fail where a target is missed")
    arguments = parser.parse_args()
    short = arguments.short
    arguments.parts = arguments.parts or [part for part in PARTS if not (short and part == "model")]
    arguments.contenders = arguments.contenders or list(CONTENDERS)
    arguments.pictures = arguments.pictures or (["small"] if short else list(SIZES))
    arguments.bodies = arguments.bodies or ["raw", "json"]
    arguments.connections = arguments.connections or ([16] if short else [1, 4, 16, 64])
    arguments.rounds = arguments.rounds or (1 if short else 3)
    arguments.seconds = arguments.seconds or (0.3 if short else 2.0)
    return arguments


def _texts(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
