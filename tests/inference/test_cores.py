from __future__ import annotations

import os
from pathlib import Path

import pytest

from inference.cores import usable_cores

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000\n", CORES),
        ("100000 100000\n", 1),
        ("1 100000\n", 1),
        ("9900000 100000\n", min(CORES, 99)),
        (f"{CORES * 100_000 - 1} 100000\n", CORES),
        ("", CORES),
        ("nonsense", CORES),
        ("100000 0\n", CORES),
    ],
)
def test_a_containers_share_of_cpu_time_bounds_the_cores(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path / "cpu.max") == expected


def test_without_a_cgroup_the_cores_that_the_process_may_run_on_count(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "missing") == CORES


def test_the_affinity_is_heeded(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores(tmp_path / "missing") == 1
    finally:
        os.sched_setaffinity(0, before)
