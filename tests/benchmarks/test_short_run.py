"""The benchmark in its short form: it starts every server, checks every answer, and fills its tables. Its figures do not matter here."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contenders import litserve_is_installed
from benchmarks.targets import Target

_ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    command = [sys.executable, "-m", "benchmarks", "--short", "--folder", str(folder)]
    run = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def results(folder: Path, output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.timeout(_TIMEOUT_S)
def test_every_server_answered_every_request_rightly(results: dict[str, Any]) -> None:
    real = {"lensgate", "fastapi"}
    stubbed = real | {"fastapi slim", "lensgate 2 workers"} | ({"litserve"} if litserve_is_installed() else set())
    wanted = {("", name) for name in real} | {("model,decode", name) for name in stubbed}
    assert {(row["stubbed"], row["contender"], row["body"]) for row in results["servers"]} == {
        (stub, name, body) for stub, name in wanted for body in ("raw", "json")
    }
    for row in results["servers"]:
        assert [(turn["errors"], turn["first_error"]) for turn in row["rounds"]] == [(0, "")]
        assert row["rounds"][0]["images"] > 0
        assert all(row[name] > 0 for name in ("images_per_s", "p50_ms", "p99_ms", "pss_mib", "generator_cores"))
        assert row["cpu_ms_per_image"] >= 0


@pytest.mark.timeout(_TIMEOUT_S)
def test_the_tables_for_the_documentation_hold_every_server_and_reference(results: dict[str, Any], folder: Path) -> None:
    lines = (folder / "results.md").read_text().splitlines()
    rows = len(results["servers"]) + len(results["references"]) + len(results["targets"]) + len(results["raw_forward"])
    tables = sum(line.startswith("| ---") for line in lines)
    assert sum(line.startswith("|") for line in lines) == rows + 2 * tables


def test_it_says_where_it_was_measured_and_what_the_machine_can_do(results: dict[str, Any]) -> None:
    assert {"processor", "cores", "memory_gib", "gpus", "python", "versions", "commit"} == set(results["machine"])
    assert {"torch", "torchvision", "fastapi", "uvicorn"} <= set(results["machine"]["versions"])
    assert [(row["batch"], row["images_per_s"] > 0) for row in results["raw_forward"]] == [(1, True), (2, True)]
    assert all(number > 0 for row in results["references"] for name, number in row.items() if name.endswith(("_per_s", "_ms")))
    assert len(results["memory"]["engine"]["tenths_mib"]) == 10


@pytest.mark.timeout(_TIMEOUT_S)
def test_every_target_that_was_measured_is_judged(results: dict[str, Any], output: str) -> None:
    names = [target["name"] for target in results["targets"]]
    assert "images/s : best raw forward" in names
    for stubbed in ("model and decoder stubbed", "model and decoder stubbed, 2 workers"):
        assert {f"{stubbed} : plain FastAPI", f"{stubbed} : plain FastAPI, slim"} <= set(names)
    assert len(names) == len(set(names))
    for name in names:
        assert name in output


@pytest.mark.timeout(_TIMEOUT_S)
def test_the_chart_is_an_svg(folder: Path, results: dict[str, Any]) -> None:
    root = ET.fromstring((folder / "results.svg").read_text())
    assert root.tag.endswith("svg")
    assert "lensgate" in {element.text for element in root.iter()}


def test_a_target_is_met_on_its_own_side() -> None:
    assert Target("a", 2.0, 1.6).met
    assert not Target("a", 1.5, 1.6).met
    assert Target("a", 1.1, 1.2, at_least=False).met
    assert not Target("a", 1.3, 1.2, at_least=False).met
