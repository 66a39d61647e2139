"""Where and with what something was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = (
    *("torch", "torchvision", "fastapi", "starlette", "uvicorn", "uvloop", "litserve", "pillow", "numpy"),
    *("python-jose", "cryptography", "structlog", "msgspec", "limits"),
)


def machine() -> dict[str, Any]:
    """Processor, cores, memory, GPUs, versions and commit."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "commit": _commit(),
    }


def describe_machine() -> str:
    """The same on two lines."""
    found = machine()
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    gpus = "".join(f", {gpu}" for gpu in found["gpus"])
    hardware = f"{found['processor']}, {found['cores']} cores, {found['memory_gib']} GiB{gpus}"
    return f"{hardware}, Python {found['python']}, commit {found['commit']}\n{versions}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("BENCH_COMMIT", "unknown")  # a machine that was brought the files alone is told
