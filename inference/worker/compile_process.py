"""Compiles one model for this machine's CPU, in a process of its own (`python -m inference.worker.compile_process`).

A compiler's memory, minutes and crashes stay out of the engine. The first line of standard input says what to compile, as JSON; when the
pipe ends, so does everything here, the C++ compiler too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Final

import torch
from torch._inductor import aot_compile

from inference.errors import ModelLoadError
from inference.settings import InferenceSettings
from inference.worker.compiled_model import CompiledModel, batch_sizes
from inference.worker.device import dtype_of
from inference.worker.pixel_graph import PixelGraph
from inference.worker.weights import load_weights

_OPTIONS: Final = {
    # Weights become constants, in the layout that the convolutions want.
    "freezing": True,
    # Each call uses its own thread's number of threads, not the one at compile time.
    "cpp.dynamic_threads": True,
}
_TOLERANCE: Final = 0.1
"""Of the largest logit. Two ways to compute in bf16 differ by 2 % at most on noise; a wrongly compiled model comes nowhere near."""


def compile_model(settings: InferenceSettings, precision: str, folder: Path) -> None:
    """Compile the settings' model and check that it computes what the uncompiled one does.

    Args:
        settings: the model, whose weights are on this machine already, and its largest batch.
        precision: `fp32`, `bf16` or `fp16`.
        folder: where the libraries go; nothing else is put there.

    Raises:
        ModelLoadError: the compiled model gives other answers, or the weights cannot be loaded.
        Exception: whatever export and compilation raise.
    """
    loaded = load_weights(settings)
    classes, side = len(loaded.info.labels), loaded.info.preprocessing.crop_px
    graph = PixelGraph(loaded, dtype_of(precision)).eval()
    sizes = batch_sizes(settings.max_batch)
    pixels = torch.randint(0, 256, (settings.max_batch, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for size in sizes:
            _compile(graph, pixels[:size], folder / f"{size}.so")
        compiled = CompiledModel(folder, classes=classes, concurrency=1)
        for size in sizes:
            expected = graph(pixels[:size])
            if not torch.allclose(compiled(pixels[:size]), expected, rtol=0, atol=_TOLERANCE * float(expected.abs().max())):
                raise ModelLoadError("The compiled model gives other answers than the model itself.")


def _compile(graph: PixelGraph, pixels: torch.Tensor, library: Path) -> None:
    exported = torch.export.export(graph, (pixels,))
    # Not `aoti_compile_and_package`, whose archive would have to be unpacked again for the library in it.
    with tempfile.TemporaryDirectory() as sources:  # they are left beside the library
        made = Path(sources) / library.name
        aot_compile(exported.module(), (pixels,), options={**_OPTIONS, "aot_inductor.output_path": str(made)})
        made.rename(library)


def _end_with_the_engine() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Compile what standard input says; exit code 1, and the reason as the last line of standard error, when that is not possible."""
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_engine, daemon=True).start()
    try:
        compile_model(InferenceSettings.model_validate(job["settings"]), job["precision"], Path(job["folder"]))
    except Exception as error:  # noqa: BLE001  export and compilation raise all kinds; the engine logs the reason and goes on without
        sys.stderr.write(f"\n{type(error).__name__}: {next(iter(str(error).splitlines()), '')}\n")
        sys.stderr.flush()
        os._exit(1)
    # Not through the interpreter's end, which would wait for the thread on standard input.
    os._exit(0)


if __name__ == "__main__":
    main()
