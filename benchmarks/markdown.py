"""What was measured, as the Markdown of docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.report import STUBBED

Results = Mapping[str, Any]

_PICTURES = {"small": "500×334", "large": "12 megapixels"}


def as_markdown(results: Results, described: str) -> str:
    """Every table of a run of the benchmarks.

    Args:
        results: what `results.json` holds.
        described: the machine, the versions and the commit.
    """
    parts = [f"{results['rounds']} rounds in turns of {results['seconds']:g} s (half of that with a stub), medians. {described}"]
    parts.append(_table(["what it must show", "reached", "wanted", ""], map(_target, results["targets"])))
    if results["raw_forward"]:
        parts += ["### The raw forward pass of ResNet-50, images/s", _forward(results["raw_forward"])]
    for stubbed, title in STUBBED.items():
        rows = [row for row in results["servers"] if row["stubbed"] == stubbed]
        if rows:
            headings = ["picture", "body", "connections", "server", "images/s", "p50 ms", "p99 ms", "CPU ms/image", "MiB"]
            parts += [f"### {title.capitalize()}", _table(headings, map(_server, rows))]
    if results["references"]:
        headings = [
            "in turns with",
            "picture",
            "connections",
            "forward images/s",
            "single forward ms",
            "decoded images/s",
            "single decode ms",
        ]
        parts += ["### Without any server", _table(headings, map(_reference, results["references"]))]
    return "\n\n".join(parts) + "\n"


def _table(headings: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _target(target: Results) -> list[str]:
    sign = "≥" if target["at_least"] else "≤"
    return [target["name"], f"{target['value']:.3g}", f"{sign} {target['bound']:g}", "" if target["met"] else "**missed**"]


def _forward(modes: Sequence[Results]) -> str:
    names = list(dict.fromkeys((mode["precision"], mode["compiled"]) for mode in modes))
    rates = {(mode["precision"], mode["compiled"], mode["batch"]): mode["images_per_s"] for mode in modes}
    batches = list(dict.fromkeys(mode["batch"] for mode in modes))
    headings = ["batch", *(f"{precision} {'compiled' if compiled else 'eager'}" for precision, compiled in names)]
    return _table(headings, ([str(batch), *(f"{rates[*name, batch]:.1f}" for name in names)] for batch in batches))


def _cell(row: Results) -> list[str]:
    return [_PICTURES[row["picture"]], row["body"], str(row["connections"])]


def _server(row: Results) -> list[str]:
    figures = [f"{row['images_per_s']:,.1f}", *(f"{row[name]:.2f}" for name in ("p50_ms", "p99_ms", "cpu_ms_per_image"))]
    server = f"{row['contender']} ({row['errors']} errors)" if row["errors"] else row["contender"]
    return [*_cell(row), server, *figures, f"{row['pss_mib']:.0f}"]


def _reference(row: Results) -> list[str]:
    names = ("forward_per_s", "forward_ms", "decode_per_s", "decode_ms")
    picture, _, connections = _cell(row)
    figures = [f"{row[name]:,.1f}" if name in row else "" for name in names]
    return [STUBBED[row["stubbed"]], picture, connections, *figures]
