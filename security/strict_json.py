"""JSON from strangers: one object, each name once, finite numbers only (RFC 8259 has no others)."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def read_object(octets: bytes) -> dict[str, object]:
    """Read one JSON object in UTF-8. The caller has bounded its length, and with it the depth.

    Raises:
        ValueError: it is anything else, or is nested too deeply.
    """
    try:
        value = json.loads(octets.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 - what was sent is bad, not what the caller passed
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name is repeated")
    return members


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is out of range")
    return number
