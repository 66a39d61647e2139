"""The GPU's table runs where there is a GPU; here, that its ratios are the ones asked for and its script can be read."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import gpu

_ROOT = Path(__file__).parents[2]
FORWARD = {
    "rows": [
        {"batch": 1, "unfused_per_s": 900.0},
        {"batch": 64, "unfused_per_s": 7000.0, "fused_per_s": 7500.0, "fused_two_streams_per_s": 8000.0},
        {"batch": 256, "unfused_per_s": 9999.0},
    ]
}
PIXELS = {"rows": [{"in_flight": 1, "images_per_s": 700.0}, {"in_flight": 256, "images_per_s": 7400.0}]}
SERVE = {
    "decode_per_s": 5000.0,
    "rows": [{"connections": 1, "images_per_s": 300.0, "p50_ms": 3.25}, {"connections": 64, "images_per_s": 4500.0, "p50_ms": 14.0}],
}


def test_the_ratios_are_of_what_the_engine_may_use() -> None:
    assert gpu._ratios({"max_batch": 64, "forward": FORWARD, "pixels": PIXELS, "serve": SERVE}) == [
        "pixels handed in : raw CUDA graph (at least 0.90): 0.93",
        "end to end : the smaller of raw CUDA graph and decode (at least 0.80): 0.90",
        "end to end, images/s (goal 6000): 4500.00",
        "one connection, p50 in ms (under 5): 3.25",
    ]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"max_batch": 64}, 0),
        ({"max_batch": 64, "forward": {"rows": [], "failed": "no GPU"}, "pixels": PIXELS, "serve": SERVE}, 2),
        ({"max_batch": 64, "pixels": {"rows": []}, "serve": {"rows": []}}, 0),
        ({"max_batch": 64, "forward": FORWARD, "pixels": PIXELS}, 1),
    ],
)
def test_a_part_that_is_missing_or_failed_has_no_ratio(found: dict[str, Any], told: int) -> None:
    assert len(gpu._ratios(found)) == told


def test_the_script_can_be_read_and_says_how_it_is_used() -> None:
    subprocess.run(["bash", "-n", str(_ROOT / "benchmarks" / "gpu.sh")], check=True)
    run = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--help"], cwd=_ROOT, capture_output=True, text=True, check=True)
    assert "--max-batch" in run.stdout


def _measure(out: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--out", str(out), "--folder", str(out / "made"), *arguments]
    subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, timeout=300)
    found: dict[str, Any] = json.loads((out / "gpu.json").read_text())
    return found


@pytest.mark.timeout(360)
def test_the_engine_is_measured_where_there_is_none(tmp_path: Path) -> None:
    found = _measure(
        tmp_path, "--only", "pixels+forward", "--model", "resnet18", "--precision", "fp32", "--max-batch", "2", "--seconds", "1"
    )
    assert "failed" not in found["pixels"]
    assert [row["in_flight"] for row in found["pixels"]["rows"]] == [1, 8, 16]
    assert found["pixels"]["rows"][-1]["images_per_s"] > 0
    assert "forward" not in found  # that is a GPU's alone


@pytest.mark.timeout(360)
def test_the_service_is_measured_where_there_is_none(tmp_path: Path) -> None:
    small = ("--precision", "fp32", "--max-batch", "2", "--seconds", "1", "--connections", "1", "--workers", "2")
    found = _measure(tmp_path, "--only", "serve", *small)
    assert "failed" not in found["serve"]
    assert [(row["connections"], row["errors"], row["images_per_s"] > 0) for row in found["serve"]["rows"]] == [(1, 0, True)]
    assert (found["serve"]["workers"], found["serve"]["decode_per_s"] > 0) == (2, True)


@pytest.mark.timeout(360)
def test_a_part_that_takes_too_long_is_ended_and_told_and_the_next_one_is_measured(tmp_path: Path) -> None:
    found = _measure(tmp_path, "--only", "serve+pixels", "--max-batch", "2", "--workers", "1", "--part-s", "1.5")
    assert [found[part]["failed"] for part in ("serve", "pixels")] == ["TimeoutError: not done within 1.5 s"] * 2
    assert "not done within" in (tmp_path / "gpu.txt").read_text()
    assert not _processes_that_write_to(tmp_path)


def _processes_that_write_to(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(file.path.startswith(str(folder)) for file in process.open_files()):
                found.append(process)
    return found
