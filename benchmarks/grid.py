"""Runs the contenders in turns: cell by cell, round by round, so that neighbours in a table are neighbours in time."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.contenders import Body, Contender, Stub
from benchmarks.load import Job, Result
from benchmarks.pictures import SIZES, jpeg
from benchmarks.processes import ROOT
from benchmarks.weights import EXPECTED_CLASS

Reference = Callable[["Cell"], dict[str, float]]
"""What the machine can do without any server, measured as one more turn: named numbers, or none for a cell that needs none."""


@dataclass(frozen=True)
class Cell:
    """What is sent, and by how many at once."""

    stub: Stub
    picture: str
    body: Body
    connections: int


@dataclass
class Row:
    """What one contender did in one cell: a result for each round."""

    cell: Cell
    contender: str
    results: list[Result] = field(default_factory=list)
    pss_mib: list[float] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Of a field of `Result`."""
        return statistics.median(float(getattr(result, name)) for result in self.results)

    @property
    def cpu_ms_per_image(self) -> float:
        return statistics.median(result.server_cpu_s / max(1.0, result.images_per_s * result.counted_s) * 1e3 for result in self.results)

    @property
    def errors(self) -> int:
        """Answers that were not right; a turn without any answer is one as well."""
        return sum(result.errors + (not result.images) for result in self.results)

    @property
    def first_error(self) -> str:
        return next((result.first_error for result in self.results if result.first_error), "no answer")

    def as_json(self) -> dict[str, Any]:
        names = ("images_per_s", "p50_ms", "p99_ms", "generator_cores", "other_cores")
        cell = {"stubbed": self.cell.stub, "picture": self.cell.picture, "body": self.cell.body, "connections": self.cell.connections}
        medians = {name: self.median(name) for name in names} | {"cpu_ms_per_image": self.cpu_ms_per_image}
        rounds = [msgspec.to_builtins(result) for result in self.results]
        return (
            cell
            | {"contender": self.contender, "errors": self.errors}
            | medians
            | {"pss_mib": statistics.median(self.pss_mib), "rounds": rounds}
        )


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    folder: Path
    rounds: int
    seconds: float
    pictures: Sequence[str]
    bodies: Sequence[Body]
    connections: Sequence[int]
    tell: Callable[[str], None]


def run_grid(
    stub: Stub, contenders: Sequence[Contender], options: Options, reference: Reference
) -> tuple[list[Row], dict[Cell, list[dict[str, float]]]]:
    """Measure each contender in each cell. All run already; those whose turn it is not are halted."""
    rows: list[Row] = []
    references: dict[Cell, list[dict[str, float]]] = {}
    for contender in contenders:
        contender.tree.halt()
    for picture in options.pictures:
        for body in options.bodies:
            requests = _write_requests(contenders, body, picture, options.folder)
            for connections in options.connections:
                cell = Cell(stub, picture, body, connections)
                row_of = {contender.name: Row(cell, contender.name) for contender in contenders}
                rows += row_of.values()
                for turn in range(options.rounds):
                    for contender in contenders[:: 1 if turn % 2 == 0 else -1]:
                        row = row_of[contender.name]
                        with _running(contender):
                            row.results.append(measure(contender, requests[contender.name], connections, options.seconds))
                            row.pss_mib.append(contender.tree.pss_mib())
                    if found := reference(cell):
                        references.setdefault(cell, []).append(found)
                speeds = ", ".join(f"{row.contender} {row.median('images_per_s'):.1f}" for row in row_of.values())
                options.tell(f"{stub or 'nothing'} stubbed, {picture} {body}, {connections} connections, images/s: {speeds}")
                for row in row_of.values():
                    if row.errors:
                        options.tell(f"{row.contender}: {row.errors} errors: {row.first_error}")
    for contender in contenders:
        contender.tree.resume()
    return rows, references


def measure(contender: Contender, request: Path, connections: int, seconds: float, *, requests: int = 0) -> Result:
    """One turn of the load generator. Answers that are not right are counted as errors, and not as images."""
    job = Job(
        port=contender.port,
        request=str(request),
        connections=connections,
        seconds=seconds,
        requests=requests,
        server_pid=contender.tree.pid,
        expected_class=EXPECTED_CLASS,
    )
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"], input=msgspec.json.encode(job), stdout=subprocess.PIPE, check=True, cwd=ROOT
    )
    return msgspec.json.decode(run.stdout, type=Result)


def write_request(contender: Contender, body: Body, picture: str, folder: Path) -> Path:
    """The file with the bytes that are sent."""
    path = folder / f"{contender.name.replace(' ', '-')}-{picture}-{body}.request"
    path.write_bytes(contender.request(body, jpeg(picture, folder)))
    return path


def _write_requests(contenders: Sequence[Contender], body: Body, picture: str, folder: Path) -> dict[str, Path]:
    assert picture in SIZES
    return {contender.name: write_request(contender, body, picture, folder) for contender in contenders}


def _running(contender: Contender) -> ExitStack:
    contender.tree.resume()
    stack = ExitStack()
    stack.callback(contender.tree.halt)
    return stack
