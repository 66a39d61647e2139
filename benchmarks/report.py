"""What was measured, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.targets import Target

_DISTURBED_CORES = 0.1
STUBBED = {"": "the whole service", "model": "the model stubbed", "model,decode": "model and decoder stubbed"}


def show_grid(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line for each cell and contender."""
    for stubbed in dict.fromkeys(row["stubbed"] for row in rows):
        table = Table(title=f"Servers: {STUBBED[stubbed]} (medians)")
        for heading in ("picture", "body", "connections", "server"):
            table.add_column(heading)
        for heading in ("images/s", "p50 ms", "p99 ms", "CPU ms/image", "memory MiB", "generator cores", "others' cores", "errors"):
            table.add_column(heading, justify="right")
        before: tuple[Any, ...] = ()
        for row in (row for row in rows if row["stubbed"] == stubbed):
            cell = (row["picture"], row["body"], str(row["connections"]))
            if before and cell != before:
                table.add_section()
            table.add_row(
                *(cell if cell != before else ("", "", "")),
                row["contender"],
                f"{row['images_per_s']:.1f}",
                f"{row['p50_ms']:.2f}",
                f"{row['p99_ms']:.2f}",
                f"{row['cpu_ms_per_image']:.2f}",
                f"{row['pss_mib']:.0f}",
                f"{row['generator_cores']:.2f}",
                f"{row['other_cores']:.2f}",
                str(row["errors"] or ""),
            )
            before = cell
        console.print(table)


def show_forward(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Batch sizes down, modes across."""
    modes = list(dict.fromkeys((row["precision"], row["compiled"]) for row in rows))
    table = Table(title="Raw forward pass of ResNet-50, images/s (medians)")
    table.add_column("batch", justify="right")
    for precision, compiled in modes:
        table.add_column(f"{precision} {'compiled' if compiled else 'eager'}", justify="right")
    for batch in dict.fromkeys(row["batch"] for row in rows):
        found = {(row["precision"], row["compiled"]): row["images_per_s"] for row in rows if row["batch"] == batch}
        table.add_row(str(batch), *(f"{found[mode]:.1f}" for mode in modes))
    console.print(table)


def show_references(console: Console, references: Sequence[Mapping[str, Any]]) -> None:
    """What the machine can do without a server, at the cell where it was measured."""
    table = Table(title="Without any server, in turns with the cells above (medians)")
    for heading in ("stubbed", "picture", "connections"):
        table.add_column(heading)
    for heading in ("forward images/s", "single forward ms", "decoded images/s", "single decode ms"):
        table.add_column(heading, justify="right")
    for row in references:
        numbers = (row.get(name) for name in ("forward_per_s", "forward_ms", "decode_per_s", "decode_ms"))
        cell = (row["stubbed"] or "nothing", row["picture"], str(row["connections"]))
        table.add_row(*cell, *("" if number is None else f"{number:.2f}" for number in numbers))
    console.print(table)


def show_disturbance(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Say so when something else ran beside what was measured."""
    disturbed = sum(row["other_cores"] > _DISTURBED_CORES for row in rows)
    if disturbed:
        console.print(f"In {disturbed} of {len(rows)} rows other programs kept more than {_DISTURBED_CORES} of a core busy: measure again.")


def show_targets(console: Console, targets: Sequence[Target]) -> None:
    """What was reached, what was wanted."""
    table = Table(title="What it must show (issue 4)")
    table.add_column("measure")
    for heading in ("reached", "wanted", ""):
        table.add_column(heading, justify="right")
    for target in targets:
        bound = f"{'≥' if target.at_least else '≤'} {target.bound:g}"
        table.add_row(target.name, f"{target.value:.2f}", bound, "pass" if target.met else "FAIL")
    console.print(table)
