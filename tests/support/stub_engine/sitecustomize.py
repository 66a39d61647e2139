"""Puts a stub in the place of the model into the engines of a real service, which then starts in a second and costs no CPU.

Python runs this file at the start of every process that has its folder on PYTHONPATH (`ENVIRONMENT`). All the rest is what ships: the
engine's process, its wire, queue, batches, lanes, watchdog and self-tests. Each picture is class 0, `stub`.

A fault is the name of a file beside the service's database; the first forward pass that finds it takes it away, and has the fault from then
on until its process ends.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any, Final

FOLDER: Final = str(Path(__file__).parent)
NAN: Final = "fault-nan"
"""The device computes nothing but NaN."""
RAISES: Final = "fault-raises"
"""Every call of the device fails, as in a CUDA context that has died."""
HANGS: Final = "fault-hangs"
"""A forward pass does not end."""
_FAULTS: Final = (NAN, RAISES, HANGS)


def environment(*, seconds_per_batch: float = 0.0) -> dict[str, str]:
    """For `lensgate serve`."""
    return {"PYTHONPATH": FOLDER, "STUB_SECONDS_PER_BATCH": str(seconds_per_batch)}


def _install() -> None:
    import numpy as np

    from inference.errors import InferenceFailed
    from inference.types import ModelInfo, Pixels, Preprocessing

    seconds_per_batch = float(os.environ["STUB_SECONDS_PER_BATCH"])

    class StubModel:
        lanes = 2
        compiled = False

        def __init__(self, max_batch: int) -> None:
            self.max_batch = max_batch
            self.info = ModelInfo(
                name="stub",
                version="1",
                digest="sha256:" + "0" * 64,
                precision="fp32",
                device="cpu",
                preprocessing=Preprocessing(resize_px=224, crop_px=224, interpolation="bilinear"),
                labels=("stub", *(f"class {number}" for number in range(1, 1000))),
            )
            self._fault = ""

        def batch_size(self, waiting: int) -> int:
            return min(waiting, self.max_batch)

        def infer(self, pixels: Sequence[Pixels], *, lane: int, alone: bool) -> tuple[Any, Any]:
            for fault in _FAULTS:
                if Path(fault).exists():
                    Path(fault).unlink(missing_ok=True)
                    self._fault = fault
            if self._fault == HANGS:
                Event().wait()
            if self._fault == RAISES:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            time.sleep(seconds_per_batch)
            scores = np.full((len(pixels), 100), np.nan if self._fault == NAN else 0.001, np.float32)
            scores[:, 0] += 0.9  # no close call
            return np.tile(np.arange(100), (len(pixels), 1)), scores

        def self_test(self, lane: int) -> None:
            if self._fault:
                raise InferenceFailed("The device computes other numbers than when it started.")

        def seconds_per_full_batch(self) -> float:
            return seconds_per_batch

    preparation: Any = ModuleType("inference.worker.preparation")
    preparation.prepare_model = lambda candidates, **_: StubModel(candidates[0].max_batch)
    device: Any = ModuleType("inference.worker.device")
    device.pci_bus_id = lambda _: None
    sys.modules |= {module.__name__: module for module in (preparation, device)}


if "api.engine_process" in sys.orig_argv:
    _install()
