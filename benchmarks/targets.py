"""What the benchmark must show (issue 4), from the medians of one run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.grid import Cell, Row

_BUSY = 16
"""Connections at which servers are compared."""


@dataclass(frozen=True)
class Target:
    """One claim: `value` must be at least (or at most) `bound`."""

    name: str
    value: float
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "value": self.value, "bound": self.bound, "at_least": self.at_least, "met": self.met}


def speed_targets(rows: Sequence[Row], references: Mapping[Cell, Sequence[Mapping[str, float]]]) -> list[Target]:
    """Those that the grid's rows can answer; what was not measured is left out."""
    row_of = {(row.cell, row.contender): row for row in rows}
    targets: list[Target] = []

    def rate(cell: Cell, contender: str) -> float | None:
        row = row_of.get((cell, contender))
        return None if row is None else row.median("images_per_s")

    def reference(cell: Cell, name: str) -> float | None:
        found = [numbers[name] for numbers in references.get(cell, ()) if name in numbers]
        return statistics.median(found) if found else None

    def claim(name: str, value: float | None, base: float | None, bound: float, *, at_least: bool = True) -> None:
        if value is not None and base:
            targets.append(Target(name, value / base, bound, at_least))

    whole, no_model = Cell("", "small", "raw", _BUSY), Cell("model", "small", "raw", _BUSY)
    bare, large = Cell("model,decode", "small", "raw", _BUSY), Cell("model", "large", "raw", _BUSY)
    claim("images/s : best raw forward", rate(whole, "lensgate"), reference(whole, "forward_per_s"), 0.80)
    claim("images/s : LitServe eager", rate(whole, "lensgate"), rate(whole, "litserve"), 1.6)
    claim("images/s : LitServe compiled", rate(whole, "lensgate"), rate(whole, "litserve compiled"), 1.15)
    claim("images/s : naive FastAPI", rate(whole, "lensgate"), rate(whole, "fastapi"), 2.0)
    claim("model and decoder stubbed : LitServe", rate(bare, "lensgate"), rate(bare, "litserve"), 3.0)
    for workers, contender in ("", "lensgate"), (", 2 workers", "lensgate 2 workers"):
        for kind, plain in ("", "fastapi"), (", slim", "fastapi slim"):
            claim(f"model and decoder stubbed{workers} : plain FastAPI{kind}", rate(bare, contender), rate(bare, plain), 0.75)
    claim("model stubbed : what the cores decode", rate(no_model, "lensgate"), reference(no_model, "decode_per_s"), 0.7)
    claim("12 megapixels, model stubbed : naive FastAPI", rate(large, "lensgate"), rate(large, "fastapi"), 4.0)
    single = Cell("", "small", "raw", 1)
    alone = row_of.get((single, "lensgate"))
    if alone is not None and (forward_ms := reference(single, "forward_ms")) and (decode_ms := reference(single, "decode_ms")):
        claim("one connection, p50 : forward + decode alone", alone.median("p50_ms"), forward_ms + decode_ms, 1.2, at_least=False)
    return targets
