"""Holds lines of the log to docs/logs.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

PAGE: Final = Path(__file__).parents[2] / "docs" / "logs.md"

ON_EVERY_LINE: Final = frozenset({"timestamp", "level", "event", "process", "pid"})
_OF_A_REQUEST: Final = frozenset({"request_id", "trace_id"})
_OF_A_LIBRARY: Final = frozenset({"logger", "exception"})


class Event(NamedTuple):
    """One row of the table of events."""

    levels: frozenset[str]
    processes: frozenset[str]
    """Without their numbers; `any` is every one."""
    required: frozenset[str]
    optional: frozenset[str]


class Schema(NamedTuple):
    """What the page says."""

    events: Mapping[str, Event]
    types: Mapping[str, str]
    """Of every field."""


@cache
def schema() -> Schema:
    """Read the page."""
    text = PAGE.read_text()
    types = dict(re.findall(r"^\| `(\w+)` \| (string|strings|integer|number|boolean|list) \|", text, re.MULTILINE))
    events = {
        name: Event(
            frozenset(levels.split()),
            frozenset(processes.split()),
            frozenset(re.findall(r"`(\w+)`(?!\?)", fields)),
            frozenset(re.findall(r"`(\w+)`\?", fields)),
        )
        for name, levels, processes, fields in re.findall(
            r"^\| `(\w+)` \| ((?:debug|info|warning|error)[a-z ]*) \| ([a-z ]+) \|([^|]*)\|", text, re.MULTILINE
        )
    }
    table = text.partition("| fields of `request` | there |")[2].partition("\n\n")[0]
    rows = [
        (set(re.findall(r"`(\w+)`", fields)), there.strip())
        for fields, there in re.findall(r"^\| (`.*?) \| (.*?) \|$", table, re.MULTILINE)
    ]
    always = frozenset().union(*(fields for fields, there in rows if there == "always"))
    every = frozenset().union(*(fields for fields, _ in rows))
    events["request"] = events["request"]._replace(required=always, optional=every - always)
    return Schema(events, types)


def faults(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """What is wrong with these lines."""
    return [f"{fault}: {line}" for line in lines for fault in _faults(line)]


def _faults(line: Mapping[str, Any]) -> Iterable[str]:
    known = schema()
    if missing := ON_EVERY_LINE - line.keys():
        yield f"it has no {', '.join(sorted(missing))}"
        return
    event = known.events.get(line["event"])
    for name, value in line.items():
        if value is None and event is not None and name in event.optional:
            continue
        if not _has_type(value, known.types.get(name, "")):
            yield f"{name} is no {known.types.get(name, 'field of the page')}"
    if "logger" in line:
        yield from (f"a library's line has no {name}" for name in line.keys() - ON_EVERY_LINE - _OF_A_REQUEST - _OF_A_LIBRARY)
        return
    if event is None:
        yield "the page has no such event"
        return
    yield from (f"it lacks {name}" for name in event.required - line.keys())
    yield from (f"it must not have {name}" for name in line.keys() - event.required - event.optional - ON_EVERY_LINE - _OF_A_REQUEST)
    if line["level"] not in event.levels:
        yield "it has another level"
    if not event.processes & {re.sub(r"-\d+$", "", line["process"]), "any"}:
        yield "another process writes it"


def _has_type(value: object, kind: str) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "strings":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "list":
            return isinstance(value, list)
    return False
