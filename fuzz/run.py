"""Fuzz one harness: `python -m fuzz.run picture --seconds 60`, or `--replay` to run its seeds once, without atheris."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEEDS = ROOT / "fuzz" / "seeds"
FOUND = ROOT / ".fuzz"
"""What a run finds on its way, its corpus and its crashes: kept between runs, and no part of the repository."""

HARNESSES = {
    "picture": ("inference.image", "PIL"),
    "token": ("security", "jose"),
    "client_auth": ("security", "urllib.parse"),
    "client_address": ("security", "ipaddress"),
    "jwks": ("security", "jose"),
}
"""The harnesses, and what is instrumented for each."""

INPUT_TIMEOUT_S = 10
MEMORY_LIMIT_MB = 2048
MAX_INPUT_BYTES = 8192


def seeds(name: str) -> Iterator[tuple[str, bytes]]:
    """The kept inputs of a harness, by file name."""
    for path in sorted((SEEDS / name).iterdir()):
        yield path.name, path.read_bytes()


def load(name: str) -> Callable[[bytes], None]:
    """The harness: it returns when all is well, and raises when a promise is broken."""
    one_input: Callable[[bytes], None] = importlib.import_module(f"fuzz.{name}").one_input
    return one_input


def _fuzz(name: str, seconds: int, options: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=list(HARNESSES[name])):
        one_input = load(name)
    corpus = FOUND / name
    corpus.mkdir(parents=True, exist_ok=True)
    arguments = [
        f"-max_total_time={seconds}",
        f"-timeout={INPUT_TIMEOUT_S}",
        f"-rss_limit_mb={MEMORY_LIMIT_MB}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-artifact_prefix={FOUND / name}-",
        "-print_final_stats=1",
        *options,
    ]
    atheris.Setup([sys.argv[0], *arguments, str(corpus), str(SEEDS / name)], one_input)
    atheris.Fuzz()


def main() -> None:
    """Run the command line; what is not known here goes to libFuzzer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=HARNESSES)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--replay", action="store_true", help="run the kept seeds once and stop")
    arguments, options = parser.parse_known_args()
    if not arguments.replay:
        _fuzz(arguments.name, arguments.seconds, options)
        return
    one_input = load(arguments.name)
    count = 0
    for _, data in seeds(arguments.name):
        one_input(data)
        count += 1
    print(f"{arguments.name}: {count} seeds, nothing wrong")


if __name__ == "__main__":
    main()
