#!/usr/bin/env python3
"""Write the hashed locks from pyproject.toml, or check that they still belong to it.

The first lock holds everything and constrains the others, so that a package has one version in all of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ("pyproject.toml", "--constraints=locks/constraints.in")
LOCKS = {
    "check": (
        *PROJECT,
        "--extra=demo",
        "--extra=otel",
        "--extra=postgres",
        "--extra=redis",
        "--group=build",
        "--group=test",
        "--group=check",
        "--group=fuzz",
        "--group=bench",
    ),
    "test": (*PROJECT, "--extra=demo", "--extra=otel", "--extra=postgres", "--extra=redis", "--group=test"),
    "demo": (*PROJECT, "--extra=demo"),
    "bench": (*PROJECT, "--extra=demo", "--group=bench"),
    "serve": (*PROJECT, "--extra=otel", "--extra=postgres", "--extra=redis", "--overrides=locks/base-image.in"),
    "build": ("--group=build",),
}
COMPILE = (
    *("locks/uv.sh", "pip", "compile", "--quiet", "--universal", "--python-version=3.11"),
    "--fork-strategy=fewest",  # one version for every Python: what is tested is what is shipped
    *("--generate-hashes", "--no-emit-index-url", "--custom-compile-command=make lock"),
)


def fingerprint(root: Path = ROOT) -> str:
    """Return the SHA-256 of all that the locks are made from: the dependencies of pyproject.toml and the `.in` files."""
    pyproject = tomllib.loads((root / "pyproject.toml").read_text())
    project = pyproject["project"]
    sources = {
        "build-system": pyproject["build-system"]["requires"],
        "requires-python": project["requires-python"],
        "dependencies": project["dependencies"],
        "optional-dependencies": project["optional-dependencies"],
        "dependency-groups": pyproject["dependency-groups"],
        "inputs": {path.name: path.read_text() for path in sorted((root / "locks").glob("*.in"))},
        "locks": LOCKS,
    }
    return hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()


def header(root: Path = ROOT) -> str:
    """Return the line that a fresh lock begins with."""
    return f"# Made from the dependencies with the SHA-256 {fingerprint(root)}\n"


def stale(root: Path = ROOT) -> list[str]:
    """Return the names of the locks that are missing or were made from other dependencies."""
    wanted = header(root)
    paths = [root / "locks" / f"{name}.txt" for name in LOCKS]
    return [path.name for path in paths if not (path.is_file() and path.read_text().startswith(wanted))]


def write(*, upgrade: bool) -> None:
    """Compile every lock; versions that still fit are kept unless `upgrade` is set."""
    first, *others = LOCKS
    _compile(first, ["--upgrade"] if upgrade else [])
    for name in others:
        _compile(name, [f"--constraints=locks/{first}.txt", "--no-annotate"])


def _compile(name: str, options: list[str]) -> None:
    subprocess.run([*COMPILE, *LOCKS[name], *options, f"--output-file=locks/{name}.txt"], check=True, cwd=ROOT)
    lock = ROOT / "locks" / f"{name}.txt"
    lock.write_text(header() + lock.read_text())
    print(f"wrote locks/{name}.txt")


def main() -> int:
    """Run the command line; the exit status is 1 where a check finds a stale lock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the locks belong to pyproject.toml")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions instead of keeping those locked")
    arguments = parser.parse_args()
    if not arguments.check:
        write(upgrade=arguments.upgrade)
        return 0
    names = stale()
    print(f"stale: {', '.join(names)}; run: make lock" if names else "the locks belong to pyproject.toml")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
