"""Faults that no input brings about, put into the decoders of a real service: the width of a PNG says which one strikes.

Python runs this file at the start of every process that has its folder on PYTHONPATH (`ENVIRONMENT`). Only decoders are changed, and in
them only what happens while they decode. All the rest is what ships.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ENVIRONMENT: Final = {"PYTHONPATH": str(Path(__file__).parent)}
"""For `lensgate serve`."""

RAISED: Final[dict[int, type[Exception]]] = {
    901: ValueError,
    902: OSError,
    903: SyntaxError,
    904: KeyError,
    905: RecursionError,
    906: ZeroDivisionError,
    907: AssertionError,
    908: UserWarning,
    909: NotImplementedError,
    910: UnicodeDecodeError,
    911: BufferError,
    912: StopIteration,
}
"""Raised where Pillow decodes."""
OUT_OF_MEMORY: Final = 951
"""MemoryError where Pillow decodes."""
CRASH: Final = 952
"""The process ends as by a fault of C code."""
KILLED: Final = 954
"""The process is killed, as by a system that is out of memory."""
ENDLESS: Final = 955
"""A loop without an end."""
REACHES_OUT: Final = 956
"""As if somebody's code ran where Pillow decodes: what it could get hold of is in the message of a ValueError."""
SECRET_IN_LOCALS: Final = 953
"""An exception that nobody expects, past the decoder's own net, out of a function that holds a secret."""
SECRET: Final = "locals-" + "s3cr3t" * 3


def _within_reach() -> str:
    attempts: dict[str, Callable[[], object]] = {
        "a file": lambda: os.open(__file__, os.O_RDONLY),
        "a connection": socket.socket,
        "a pipe": os.pipe,
        "its worker's memory": lambda: os.open(f"/proc/{os.getppid()}/mem", os.O_RDONLY),
    }
    got = []
    for what, attempt in attempts.items():
        with contextlib.suppress(OSError):
            attempt()
            got.append(what)
    return ", ".join(got) or "nothing"


def _install() -> None:
    png: Any = importlib.import_module("PIL.PngImagePlugin").PngImageFile
    image: Any = importlib.import_module("inference.image")
    load, decode = png.load, image.decode

    def faulty_load(image: Any) -> Any:  # noqa: ANN401 # as Pillow's
        if image.width == CRASH:
            os.kill(os.getpid(), signal.SIGSEGV)
        if image.width == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        if image.width == REACHES_OUT:
            raise ValueError(_within_reach())
        while image.width == ENDLESS:
            pass
        if image.width == OUT_OF_MEMORY:
            raise MemoryError
        if (kind := RAISED.get(image.width)) is not None:
            raise kind("utf-8", b"", 0, 1, "a fault") if kind is UnicodeDecodeError else kind("a fault")
        return load(image)

    def faulty_decode(data: memoryview, **options: Any) -> Any:  # noqa: ANN401 # as ours
        if data[16:20] == SECRET_IN_LOCALS.to_bytes(4):
            password = SECRET
            raise RuntimeError("nobody expects this fault" + password[:0])
        return decode(data, **options)

    png.load = faulty_load
    image.decode = faulty_decode


if "inference.decoding.process" in sys.orig_argv:
    _install()
