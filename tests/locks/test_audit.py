"""The verdict of the dependency audit on pip-audit's report."""

from __future__ import annotations

import runpy
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LOCKS = Path(__file__).parents[2] / "locks"
Judge = Callable[[dict[str, Any] | None, list[dict[str, str]]], tuple[list[str], bool]]

WAIVER = {"id": "CVE-2026-1", "package": "jose", "reason": "not reached"}


@pytest.fixture(scope="module")
def judge() -> Judge:
    script = runpy.run_path(str(LOCKS / "audit.py"))
    function: Judge = script["judge"]
    return function


def package(name: str, *vulnerabilities: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "vulns": list(vulnerabilities)}


def vulnerability(name: str, *aliases: str, fixed: str | None = None) -> dict[str, Any]:
    return {"id": name, "aliases": list(aliases), "fix_versions": [fixed] if fixed else []}


def test_a_vulnerability_without_a_waiver_fails_and_names_the_fix(judge: Judge) -> None:
    lines, passed = judge({"dependencies": [package("jose", vulnerability("PYSEC-1", fixed="1.1"))]}, [])
    assert not passed
    assert "audit: jose 1.0: PYSEC-1, fixed by 1.1" in lines


def test_a_waiver_counts_by_an_alias_too(judge: Judge) -> None:
    lines, passed = judge({"dependencies": [package("jose", vulnerability("PYSEC-1", "CVE-2026-1"))]}, [WAIVER])
    assert passed
    assert lines == ["audit: 1 packages, 1 waivers used, passed"]


def test_a_waiver_counts_for_its_own_package_only(judge: Judge) -> None:
    _, passed = judge({"dependencies": [package("other", vulnerability("CVE-2026-1"))]}, [WAIVER])
    assert not passed


def test_a_waiver_that_matches_nothing_is_named(judge: Judge) -> None:
    lines, passed = judge({"dependencies": [package("jose")]}, [WAIVER])
    assert passed
    assert "audit: the waiver of CVE-2026-1 for jose matches nothing any more" in lines


@pytest.mark.parametrize("report", [None, {"dependencies": [{"name": "jose", "skip_reason": "not found"}]}])
def test_an_audit_that_looked_at_nothing_says_so(judge: Judge, report: dict[str, Any] | None) -> None:
    lines, passed = judge(report, [WAIVER])
    assert passed
    assert lines == ["audit: skipped, no source of known vulnerabilities was reachable"]


def test_a_package_that_the_index_does_not_know_is_named(judge: Judge) -> None:
    lines, _ = judge({"dependencies": [package("jose"), {"name": "ours", "skip_reason": "not found"}]}, [])
    assert "audit: not known to the index: ours" in lines


def test_every_waiver_is_for_a_locked_package_and_says_why() -> None:
    locked = (LOCKS / "check.txt").read_text()
    for waiver in tomllib.loads((LOCKS / "audit-waivers.toml").read_text())["waiver"]:
        assert set(waiver) == {"id", "package", "reason"}
        assert f"\n{waiver['package']}==" in locked
        assert len(waiver["reason"].split()) > 5
