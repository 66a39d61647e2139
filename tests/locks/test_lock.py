"""The locks: fresh, consistent with each other, and free of addresses."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted(path.name for path in (ROOT / "locks").glob("*.txt"))


@pytest.fixture(scope="module")
def lock() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "locks" / "lock.py"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "locks", tmp_path / "locks")
    return tmp_path


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "locks" / name).read_text(), re.MULTILINE))


def test_the_locks_belong_to_the_dependencies_of_pyproject(lock: dict[str, Any]) -> None:
    assert lock["stale"](ROOT) == []


def test_every_lock_is_stale_once_a_dependency_changes(lock: dict[str, Any], copy: Path) -> None:
    pyproject = copy / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('"numpy>=', '"numpy>=2.0,>=', 1))
    assert sorted(lock["stale"](copy)) == LOCKS


def test_the_locks_stay_fresh_when_only_a_tools_settings_change(lock: dict[str, Any], copy: Path) -> None:
    pyproject = copy / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace("line-length = 140", "line-length = 100", 1))
    assert lock["stale"](copy) == []


def test_a_missing_lock_is_stale(lock: dict[str, Any], copy: Path) -> None:
    (copy / "locks" / "serve.txt").unlink()
    assert lock["stale"](copy) == ["serve.txt"]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_pins_what_the_largest_lock_pins(name: str) -> None:
    assert pins(name)
    assert pins(name).items() <= pins("check.txt").items()


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_address_and_a_hash_for_every_pin(name: str) -> None:
    text = (ROOT / "locks" / name).read_text()
    assert "://" not in text
    assert re.findall(r"^[a-z0-9-]+==.*[^\\]$", text, re.MULTILINE) == []


def test_what_the_base_image_brings_is_not_in_its_lock() -> None:
    brought = {name for name in pins("serve.txt") if name.startswith(("torch", "nvidia", "triton", "cuda"))}
    assert brought == {"nvidia-ml-py"}  # which is not of CUDA, but asks the driver


def test_torch_is_locked_at_the_version_of_the_base_image() -> None:
    tag = re.search(r"pytorch/pytorch:(\S+?)-cuda", (ROOT / "Dockerfile").read_text())
    assert tag is not None
    assert pins("demo.txt")["torch"] == tag[1]
