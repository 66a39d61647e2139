#!/usr/bin/env python3
"""Writes docs/attack-tests.md: every case of cases.toml with the tests that try it, found by the numbers in their names."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

FOLDER: Final = Path(__file__).resolve().parent
ROOT: Final = FOLDER.parent.parent
TABLE: Final = ROOT / "docs" / "attack-tests.md"
COMMAND: Final = ".venv/bin/python tests/attacks/table.py"
_NUMBERED: Final = re.compile(r"test_(\d{3})_(\w+)")


class AttackTest(NamedTuple):
    """One test function."""

    file: str
    """Its path from the root of the repository."""
    name: str

    @property
    def number(self) -> int | None:
        """The number of the case that it tries; None for a neighbour of the cases."""
        found = _NUMBERED.fullmatch(self.name)
        return int(found[1]) if found else None

    @property
    def sentence(self) -> str:
        """Its name as people read it."""
        found = _NUMBERED.fullmatch(self.name)
        return (found[2] if found else self.name.removeprefix("test_")).replace("_", " ")

    @property
    def link(self) -> str:
        """A link for a page in docs/."""
        return f"[{Path(self.file).name}](../{self.file})"


class Section(NamedTuple):
    """A group of cases, by number."""

    title: str
    cases: Mapping[int, str]


class Cases(NamedTuple):
    """The list of cases.toml."""

    sections: Sequence[Section]
    not_yet: Mapping[int, str]
    """Cases that cannot be tried yet, and why."""

    @property
    def numbers(self) -> set[int]:
        """Every case's number."""
        return {number for section in self.sections for number in section.cases}


def read_cases() -> Cases:
    """The cases, in the order of the file."""
    data = tomllib.loads((FOLDER / "cases.toml").read_text())
    sections = [
        Section(
            f"{section['title']} ({section['note']})" if "note" in section else section["title"],
            {int(number): text for number, text in section["cases"].items()},
        )
        for section in data["section"]
    ]
    return Cases(sections, {int(number): reason for number, reason in data.get("not_yet", {}).items()})


def find_tests(folder: Path = FOLDER) -> list[AttackTest]:
    """Every test of `folder`, read from the source: nothing is imported or run."""
    return [test for path in sorted(folder.glob("test_*.py")) for test in _tests_of(path)]


def _tests_of(path: Path) -> Iterator[AttackTest]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            yield AttackTest(path.relative_to(ROOT).as_posix(), node.name)


def render(cases: Cases, tests: Sequence[AttackTest]) -> str:
    """The page."""
    lines = [
        "# Hostile and faulty inputs, and the tests that try them",
        "",
        f"Made by `{COMMAND}` from [cases.toml](../tests/attacks/cases.toml) and the names of the tests; a test fails when it is stale",
        "or when a case has no test. PJ is `application/problem+json`, ACAO is `Access-Control-Allow-Origin`.",
    ]
    for section in cases.sections:
        lines += ["", f"## {section.title}", "", "| case | what must happen | tests |", "|---:|---|---|"]
        lines += [f"| {number} | {_cell(text)} | {_tried_by(number, cases, tests)} |" for number, text in section.cases.items()]
    neighbours = [test for test in tests if test.number not in cases.numbers and not test.file.endswith("test_table.py")]
    if neighbours:
        lines += ["", "## Their neighbours", "", "| test | file |", "|---|---|"]
        lines += [f"| {test.sentence} | {test.link} |" for test in neighbours]
    return "\n".join(lines) + "\n"


def _tried_by(number: int, cases: Cases, tests: Sequence[AttackTest]) -> str:
    found = "<br>".join(f"{test.sentence} ({test.link})" for test in tests if test.number == number)
    return found or f"none yet: {cases.not_yet.get(number, 'missing')}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    TABLE.write_text(render(read_cases(), find_tests()))
