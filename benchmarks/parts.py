"""The parts of a run. Each returns what goes into the JSON file under its name, and the targets that it can judge."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender, Model, Stub, litserve_is_installed, start_lensgate, start_litserve, start_naive
from benchmarks.grid import Cell, Options, Row, run_grid
from benchmarks.references import BATCHES, Decode, Forward
from benchmarks.targets import Target
from benchmarks.weights import random_weights

_BUSY_AND_ALONE = (1, 16)
"""The connections at which targets are set, and references are measured."""
_WARM_START_S = 20.0
CONTENDERS = ("lensgate", "lensgate 2 workers", "litserve", "litserve compiled", "fastapi", "fastapi slim")


@dataclass
class Found:
    """What has been measured so far."""

    rows: list[Row] = field(default_factory=list)
    references: dict[Cell, list[dict[str, float]]] = field(default_factory=dict)
    forward: list[dict[str, Any]] = field(default_factory=list)
    starts_s: dict[str, float] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)

    def references_as_json(self) -> list[dict[str, Any]]:
        return [
            {"stubbed": cell.stub, "picture": cell.picture, "body": cell.body, "connections": cell.connections}
            | {name: statistics.median(numbers[name] for numbers in rounds) for name in rounds[0]}
            for cell, rounds in self.references.items()
        ]


@dataclass(frozen=True)
class Choice:
    """Who takes part, and in which modes."""

    contenders: Sequence[str] = CONTENDERS
    with_real_model: Sequence[str] = CONTENDERS
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of Lensgate, by the names of its environment."""
    precisions: Sequence[str] = ()
    """Of the raw forward pass; empty: float32, and the one that Lensgate chose."""
    modes: Sequence[str] = ("eager", "compiled")
    """Of the raw forward pass."""
    batches: Sequence[int] = BATCHES
    """Of the raw forward pass."""
    warm_start: bool = True
    """Start Lensgate twice, and time the second start."""


def run_real(found: Found, options: Options, choice: Choice) -> None:
    """The real model: the raw forward pass, then the servers, with the raw pass and decoding alone in turns among them."""
    weights = random_weights("resnet50", options.folder)
    run = options.folder / "run" / "real"
    model = Model(weights)
    with ExitStack() as stack:
        contenders = []
        if "lensgate" in choice.with_real_model:
            if choice.warm_start:
                start_lensgate(run, "", model, extra=choice.settings).tree.stop()  # compiles; the next start is warm
            lensgate = _keep(stack, start_lensgate(run, "", model, extra=choice.settings))
            contenders.append(lensgate)
            model = replace(model, precision=lensgate.precision)
            if choice.warm_start:
                found.starts_s["lensgate, warm"] = lensgate.start_s
                found.targets.append(Target("seconds of a warm start to ready", lensgate.start_s, _WARM_START_S, at_least=False))
            lensgate.tree.halt()
        else:
            model = replace(model, precision="bf16")
        forward = Forward(weights, options.folder)
        stack.callback(forward.tree.stop)
        precisions = choice.precisions or tuple(dict.fromkeys(("fp32", model.precision)))
        options.tell("the raw forward pass")
        found.forward = forward.table(precisions, choice.modes, choice.batches, options.rounds, options.seconds / 4)
        for name, start in _others(model).items():
            if name in choice.with_real_model:
                options.tell(f"starting {name}")
                contenders.append(_keep(stack, start(run)))
                found.starts_s[name] = contenders[-1].start_s
                contenders[-1].tree.halt()
        decode = Decode(options.folder)
        stack.callback(decode.tree.stop)

        def reference(cell: Cell) -> dict[str, float]:
            if cell.body != "raw" or cell.picture != "small" or cell.connections not in _BUSY_AND_ALONE:
                return {}
            return forward.measure(options.seconds / 2) | decode.measure(cell, options.seconds / 4)

        _run(found, "", contenders, options, reference)


def run_stubbed(found: Found, stub: Stub, options: Options, choice: Choice) -> None:
    """The model stubbed in all, or the model and the decoder."""
    run = options.folder / "run" / stub.replace(",", "-and-")
    with ExitStack() as stack:
        contenders = []
        starts: dict[str, Callable[[], Contender]] = {
            "lensgate": lambda: start_lensgate(run, stub, None, extra=choice.settings),
            "litserve": lambda: start_litserve(run, stub, None),
            "fastapi": lambda: start_naive(run, stub, None),
        }
        if stub == "model,decode":  # where anything else takes longer than HTTP, how quick it is at it does not show
            starts["lensgate 2 workers"] = lambda: start_lensgate(run, stub, None, workers=2, extra=choice.settings)
            starts["fastapi slim"] = lambda: start_naive(run, stub, None, slim=True)
        for name, start in starts.items():
            if name in choice.contenders and (name != "litserve" or litserve_is_installed()):
                contenders.append(_keep(stack, start()))
        decode = Decode(options.folder)
        stack.callback(decode.tree.stop)

        def reference(cell: Cell) -> dict[str, float]:
            wanted = cell.stub == "model" and cell.body == "raw" and cell.connections in _BUSY_AND_ALONE
            return decode.measure(cell, options.seconds / 2) if wanted else {}

        _run(found, stub, contenders, options, reference)


def _others(model: Model) -> dict[str, Callable[[Path], Contender]]:
    others: dict[str, Callable[[Path], Contender]] = {}
    if litserve_is_installed():
        others["litserve"] = lambda run: start_litserve(run, "", model)
        others["litserve compiled"] = lambda run: start_litserve(run, "", model, compiled=True)
    others["fastapi"] = lambda run: start_naive(run, "", model)
    return others


def _keep(stack: ExitStack, contender: Contender) -> Contender:
    stack.callback(contender.tree.stop)
    return contender


def _run(
    found: Found, stub: Stub, contenders: Sequence[Contender], options: Options, reference: Callable[[Cell], dict[str, float]]
) -> None:
    rows, references = run_grid(stub, contenders, options, reference)
    found.rows += rows
    found.references |= references
