"""Finds secrets in a log by their shapes, whoever made them, and by what the service's own files hold."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SHAPES: Final = {
    "a client secret": re.compile(r"lgs_[A-Za-z0-9_-]{20,}"),
    "Basic credentials": re.compile(r"Y2xpZW50X[A-Za-z0-9+/]{20,}"),  # base64 of `client_...`
    "a token": re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),  # two segments are enough: the header of a JWT begins like that
    "a private key": re.compile(r"PRIVATE KEY"),
}


def leaks(log: Iterable[str], keys_dir: Path) -> list[str]:
    """What of a secret stands in these lines: the line's number and the kind, never the secret itself.

    Args:
        log: the raw lines.
        keys_dir: the service's keys; no line of theirs may stand in the log either.
    """
    of_keys = {line for path in keys_dir.glob("*.pem") for line in path.read_text().splitlines() if not line.startswith("-----")}
    found = []
    for number, line in enumerate(log, 1):
        found += [f"line {number}: {kind}" for kind, shape in SHAPES.items() if shape.search(line)]
        found += [f"line {number}: a key's file" for part in of_keys if part in line]
    return found
