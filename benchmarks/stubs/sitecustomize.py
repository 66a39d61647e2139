"""Puts a stub in the place of the model, and with `PYTHON_BENCH_STUBBED=model,decode` of decoding, too, in the processes of a real service.

Python runs this file at the start of every process that has its folder on PYTHONPATH; decoders hear of no variables but Python's own. All
the rest is what ships: the gate, HTTP, the wires to decoders and engine, its queue and its batches, the log.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_CLASS = 500
"""`benchmarks.weights.EXPECTED_CLASS`, whose import is left to processes that need it."""
_TOP_K = 100


def _stub_model() -> None:
    """In the engine, without torch."""
    import numpy as np

    from inference.types import ModelInfo, Pixels, Preprocessing

    class StubModel:
        lanes = 2  # as DeviceModel has on a CPU
        compiled = False

        def __init__(self, max_batch: int) -> None:
            self.max_batch = max_batch
            self.info = ModelInfo(
                name="stub",
                version="1",
                digest="sha256:" + "0" * 64,
                precision="fp32",
                device="cpu",
                preprocessing=Preprocessing(resize_px=232, crop_px=224, interpolation="bilinear"),
                labels=tuple(f"class {number}" for number in range(1000)),
            )
            self._ids = np.tile(np.arange(_CLASS, _CLASS + _TOP_K), (max_batch, 1))
            self._scores = np.full((max_batch, _TOP_K), 0.001, np.float32)
            self._scores[:, 0] = 0.9  # no close call

        def batch_size(self, waiting: int) -> int:
            return min(waiting, self.max_batch)

        def infer(self, pixels: Sequence[Pixels], *, lane: int, alone: bool) -> tuple[Any, Any]:  # as DeviceModel's
            return self._ids[: len(pixels)], self._scores[: len(pixels)]

        def self_test(self, lane: int) -> None:
            pass

        def seconds_per_full_batch(self) -> float:
            return 0.001

    preparation: Any = ModuleType("inference.worker.preparation")
    preparation.prepare_model = lambda candidates, **_: StubModel(candidates[0].max_batch)
    device: Any = ModuleType("inference.worker.device")
    device.pci_bus_id = lambda _: None
    sys.modules |= {module.__name__: module for module in (preparation, device)}


def _stub_decode() -> None:
    """In a decoder: the first picture is decoded, and stands for all others."""
    image: Any = importlib.import_module("inference.image")
    decode = image.decode
    decoded: list[Any] = []

    def decode_once(data: memoryview, **options: Any) -> Any:  # noqa: ANN401 # as Lensgate's
        if not decoded:
            decoded.append(decode(data, **options))
        return decoded[0]

    image.decode = decode_once


_stubbed = os.environ["PYTHON_BENCH_STUBBED"].split(",")
if "model" in _stubbed and "api.engine_process" in sys.orig_argv:
    _stub_model()
if "decode" in _stubbed and "inference.decoding.process" in sys.orig_argv:
    _stub_decode()
