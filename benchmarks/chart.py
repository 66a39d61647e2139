"""The chart for docs/performance.md: images a second at 16 connections, by server, as an SVG without any library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.report import STUBBED

_CONNECTIONS = 16
_COLOURS = {
    "lensgate": "#2563eb",
    "lensgate 2 workers": "#60a5fa",
    "litserve": "#f59e0b",
    "litserve compiled": "#b45309",
    "fastapi": "#6b7280",
    "fastapi slim": "#9ca3af",
    "raw forward": "#10b981",
}
_WIDTH, _LABEL, _BAR, _VALUE = 860, 150, 18, 80
_GAP, _HEAD, _MARGIN = 6, 34, 16


def draw(results: Mapping[str, Any]) -> str:
    """One group of bars for each picture and stub; each group has its own scale."""
    groups: list[tuple[str, list[tuple[str, float]]]] = []
    for stubbed, title in STUBBED.items():
        for picture, size in (("small", "500×334 JPEG"), ("large", "12-megapixel JPEG")):
            bars = [(row["contender"], row["images_per_s"]) for row in results["servers"] if _matches(row, stubbed, picture)]
            forward = (row for row in results["references"] if _matches(row, stubbed, picture) and "forward_per_s" in row)
            bars += [("raw forward", row["forward_per_s"]) for row in forward]
            if bars:
                groups.append((f"{title}, {size}", bars))
    return _svg(groups)


def _matches(row: Mapping[str, Any], stubbed: str, picture: str) -> bool:
    return bool(row["stubbed"] == stubbed and row["picture"] == picture and row["body"] == "raw" and row["connections"] == _CONNECTIONS)


def _svg(groups: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    parts: list[str] = []
    top = _HEAD
    for title, bars in groups:
        parts.append(
            f'<text x="{_MARGIN}" y="{top}" font-weight="bold">{escape(title)}: images/s, {_CONNECTIONS} connections, raw body</text>'
        )
        top += _GAP + 4
        largest = max(rate for _, rate in bars)
        for name, rate in bars:
            width = (_WIDTH - _LABEL - _VALUE) * rate / largest if largest else 0.0
            middle = top + _BAR - 5
            parts += [
                f'<text x="{_LABEL - 8}" y="{middle}" text-anchor="end">{escape(name)}</text>',
                f'<rect x="{_LABEL}" y="{top}" width="{width:.1f}" height="{_BAR}" rx="2" fill="{_COLOURS.get(name, "#999999")}"/>',
                f'<text x="{_LABEL + width + 6:.1f}" y="{middle}">{rate:,.0f}</text>',
            ]
            top += _BAR + _GAP
        top += _HEAD
    style = "svg{background:#ffffff} text{font:13px system-ui,sans-serif;fill:#111827}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}"><style>{style}</style>'
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{top}" fill="#ffffff"/>', *parts, "</svg>", ""])
