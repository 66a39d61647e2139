"""Keep of what fuzzing found only the inputs that reach something that no kept seed reaches: `python -m fuzz.keep picture`.

What is reached is told in steps from line to line of the instrumented packages; the smallest inputs are tried first.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz.run import FOUND, HARNESSES, SEEDS, load, seeds

Step = tuple[str, int, int]


def steps(one_input: Callable[[bytes], None], data: bytes, folders: tuple[str, ...]) -> set[Step]:
    """From which line to which the harness went inside the files that begin so."""
    reached: set[Step] = set()
    last: dict[FrameType, int] = {}

    def in_frame(frame: FrameType, event: str, _: Any) -> Any:  # noqa: ANN401 # sys.settrace has it so
        if event == "line":
            reached.add((frame.f_code.co_filename, last.get(frame, -1), frame.f_lineno))
            last[frame] = frame.f_lineno
        return in_frame

    def on_call(frame: FrameType, _: str, __: Any) -> Any:  # noqa: ANN401
        return in_frame if frame.f_code.co_filename.startswith(folders) else None

    sys.settrace(on_call)
    try:
        one_input(data)
    finally:
        sys.settrace(None)
    return reached


def main() -> None:
    """Copy them beside the seeds, under the beginning of their SHA-256."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=HARNESSES)
    name: str = parser.parse_args().name
    one_input = load(name)
    folders = tuple(_files_of(package) for package in HARNESSES[name])
    reached: set[Step] = set()
    for _, data in seeds(name):
        reached |= steps(one_input, data, folders)
    found = sorted((path.read_bytes() for path in (FOUND / name).iterdir()), key=len)
    kept = 0
    for data in found:
        new = steps(one_input, data, folders) - reached
        if new:
            reached |= new
            kept += 1
            (SEEDS / name / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    print(f"{name}: kept {kept} of {len(found)}")


def _files_of(package: str) -> str:
    path = Path(str(importlib.import_module(package).__file__))
    return str(path.parent if path.name == "__init__.py" else path)


if __name__ == "__main__":
    main()
