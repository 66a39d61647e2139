"""What the machine can do without any server: the raw forward pass, and decoding alone. Each in a process of its own."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import inductor_cache
from benchmarks.grid import Cell
from benchmarks.processes import Tree

BATCHES = (1, 2, 4, 8, 16, 32)


class Forward:
    """The raw forward pass. Its network is loaded, and compiled, at the first question."""

    def __init__(self, weights: Path, folder: Path) -> None:
        self.tree = Tree(
            "raw-forward", ["-m", "benchmarks.raw_forward", str(weights)], folder / "references", inductor_cache(folder), speaks=True
        )
        self._best: dict[str, Any] = {}
        self._best_single: dict[str, Any] = {}

    def table(
        self, precisions: Sequence[str], compile_modes: Sequence[str], batches: Sequence[int], rounds: int, seconds: float
    ) -> list[dict[str, Any]]:
        """Every mode at every batch size, in turns; and keep the best for `measure`."""
        modes = [
            {"precision": precision, "compiled": mode == "compiled", "batch": batch}
            for precision in precisions
            for mode in compile_modes
            for batch in batches
        ]
        for mode in modes:
            self._ask(mode, 0.0)  # compiles
        answers = [[self._ask(mode, seconds) for mode in modes] for _ in range(rounds)]
        per_s = [statistics.median(turn[index]["images_per_s"] for turn in answers) for index in range(len(modes))]
        p50_ms = [statistics.median(turn[index]["p50_ms"] for turn in answers) for index in range(len(modes))]
        self._best = modes[per_s.index(max(per_s))]
        singles = [index for index, mode in enumerate(modes) if mode["batch"] == 1]
        self._best_single = modes[min(singles, key=lambda index: p50_ms[index])] if singles else {}
        self.tree.halt()
        return [mode | {"images_per_s": rate, "p50_ms": time_ms} for mode, rate, time_ms in zip(modes, per_s, p50_ms, strict=True)]

    def measure(self, seconds: float) -> dict[str, float]:
        """The best mode now, in images a second, and the best single pass in milliseconds."""
        self.tree.resume()
        found = {"forward_per_s": self._ask(self._best, seconds)["images_per_s"]}
        if self._best_single:
            found["forward_ms"] = self._ask(self._best_single, seconds)["p50_ms"]
        self.tree.halt()
        return found

    def _ask(self, mode: dict[str, Any], seconds: float) -> dict[str, float]:
        answer: dict[str, float] = self.tree.ask(mode | {"seconds": seconds})
        return answer


class Decode:
    """Decoding alone."""

    def __init__(self, folder: Path) -> None:
        self.tree = Tree("raw-decode", ["-m", "benchmarks.raw_decode"], folder / "references", {}, speaks=True)
        self._folder = folder

    def measure(self, cell: Cell, seconds: float) -> dict[str, float]:
        """By all cores, in pictures a second (threads or processes, whichever is more), and one alone in milliseconds."""
        self.tree.resume()
        answer = self.tree.ask({"picture": str(self._folder / f"{cell.picture}.jpg"), "seconds": seconds})
        self.tree.halt()
        return {"decode_per_s": max(answer["threads_per_s"], answer["processes_per_s"]), "decode_ms": answer["p50_ms"]}
