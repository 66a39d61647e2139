"""The model on its device: uint8 pictures in, classes and probabilities out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from inference.cores import usable_cores
from inference.errors import InferenceFailed, ModelLoadError
from inference.settings import InferenceSettings
from inference.types import ModelInfo, Pixels
from inference.worker.compiled_model import CompiledModel, largest_size
from inference.worker.cpu_lane import CpuLane
from inference.worker.cuda_lanes import make_cuda_lanes
from inference.worker.cuda_stream import cuda_streams
from inference.worker.device import dtype_of, resolve_device, resolve_precision, set_up_gpu
from inference.worker.lane import Lane, TopClasses
from inference.worker.out_of_memory import ran_out_of_memory, run_in_halves
from inference.worker.pixel_graph import PixelGraph
from inference.worker.weights import LoadedWeights

MAX_TOP_K: Final = 100
"""The most classes that a prediction can name (the contract's `top_k`)."""

# Up to here every batch size is run once at warm-up; above, doubling sizes are, as the libraries choose their kernels by magnitude.
_EACH_SIZE_UP_TO: Final = 8
_CPU_LANES: Final = 2
# Two runs of one batch on one device agree to far less than this; a broken device does not come near.
_SELF_TEST_TOLERANCE: Final = 1e-2


class DeviceModel:
    """Runs batches of pictures, on each of its lanes one at a time: each lane belongs to one thread.

    Args:
        loaded: the network, which is taken over.
        settings: `device`, `precision`, `max_batch` and `gpu_memory_fraction` are read.
        compiled: the folder with the compiled form of the network, which is then run instead.

    Raises:
        ModelLoadError: the device is not there or its memory is too small.
    """

    info: ModelInfo
    """With the precision and the device that it really runs with."""
    max_batch: int
    """The setting, or fewer where the GPU's memory does not suffice."""

    def __init__(self, loaded: LoadedWeights, settings: InferenceSettings, compiled: Path | None = None) -> None:
        self._device = resolve_device(settings.device)
        precision = resolve_precision(settings.precision, self._device, loaded.module)
        self.max_batch = settings.max_batch
        self.info = msgspec.structs.replace(loaded.info, precision=precision, device=str(self._device))
        self.compiled = compiled is not None
        self._sizes: tuple[int, ...] = ()
        """The batch sizes that run well, in order; empty where all do."""
        self._top_k = min(MAX_TOP_K, len(self.info.labels))
        crop_px = self.info.preprocessing.crop_px
        try:
            if self._device.type == "cuda":
                set_up_gpu(self._device, precision, settings.gpu_memory_fraction)
                self._lanes, self.max_batch = self._cuda_lanes(loaded)
            else:
                self._lanes = self._cpu_lanes(loaded, compiled)
        except RuntimeError as error:
            if ran_out_of_memory(error):
                raise ModelLoadError(f"{self.info.name} does not fit into the memory of {self._device}.") from error
            raise ModelLoadError(self._does_not_run(error)) from error
        generator = np.random.default_rng(0)
        self._probe: Pixels = generator.integers(0, 256, size=(crop_px, crop_px, 3), dtype=np.uint8)
        self._probe_probabilities: NDArray[np.float32] | None = None

    def _cpu_lanes(self, loaded: LoadedWeights, compiled: Path | None) -> Sequence[Lane]:
        cores = usable_cores()
        lanes = min(_CPU_LANES, cores)
        graph: Callable[[torch.Tensor], torch.Tensor]
        if compiled is None:
            graph = PixelGraph(loaded, dtype_of(self.info.precision))
        else:
            graph = model = CompiledModel(compiled, classes=len(self.info.labels), concurrency=lanes)
            self._sizes = model.sizes
        crop_px = self.info.preprocessing.crop_px
        threads = cores // lanes
        # With the helpers of the other lanes, as OpenMP counts them, as many as there are cores.
        threads_alone = cores - (lanes - 1) * (threads - 1)
        return [
            CpuLane(graph, max_batch=self.max_batch, crop_px=crop_px, top_k=self._top_k, threads_alone=threads_alone, threads=threads)
            for _ in range(lanes)
        ]

    def _cuda_lanes(self, loaded: LoadedWeights) -> tuple[Sequence[Lane], int]:
        precision = self.info.precision
        return make_cuda_lanes(
            PixelGraph(loaded, dtype_of(precision)).to(self._device),
            cuda_streams,
            device=self._device,
            fuse=precision != "fp32",
            max_batch=self.max_batch,
            crop_px=self.info.preprocessing.crop_px,
            top_k=self._top_k,
        )

    def _does_not_run(self, error: RuntimeError) -> str:
        return f"{self.info.name} does not run in {self.info.precision} on {self.info.device}: {str(error).splitlines()[0]}"

    @property
    def lanes(self) -> int:
        """How many batches can run at once."""
        return len(self._lanes)

    def batch_size(self, waiting: int) -> int:
        """How many of so many pictures, at least one, best go into one batch: up to `max_batch`, but no more than run in one piece."""
        return largest_size(self._sizes, waiting) if self._sizes else min(waiting, self.max_batch)

    def warm_up(self) -> None:
        """Run real forward passes, the largest batch first, so that no caller meets a first-time cost or a shortage of memory.

        Every batch size up to 8 is run, above that the powers of two and `max_batch`.

        Raises:
            ModelLoadError: a pass failed or gave numbers that are not finite.
        """
        sizes = {size for size in range(1, self.max_batch + 1) if size <= _EACH_SIZE_UP_TO or size & (size - 1) == 0} | {self.max_batch}
        for size in sorted(sizes, reverse=True):
            try:
                for alone in (False, True):  # each has kernels of its own
                    _ids, probabilities = self._lanes[0].infer([self._probe] * size, alone=alone)
            except torch.OutOfMemoryError as error:
                raise ModelLoadError(
                    f"A batch of {size} pictures does not fit into the memory of {self._device}: lower LENSGATE_INFERENCE__MAX_BATCH."
                ) from error
            except RuntimeError as error:
                raise ModelLoadError(self._does_not_run(error)) from error
            if not np.isfinite(probabilities).all():
                # Only fp16 has a smaller range than the numbers that networks are trained in.
                other = ", or LENSGATE_INFERENCE__PRECISION=bf16 or fp32 is needed" if self.info.precision == "fp16" else ""
                raise ModelLoadError(f"{self.info.name} gives no finite numbers in {self.info.precision}: the weights are broken{other}.")
            self._probe_probabilities = probabilities[0]

    def seconds_per_full_batch(self) -> float:
        """Measure how long one batch of `max_batch` pictures takes while no lane is idle, in seconds."""
        began_s = time.monotonic()
        self.infer([self._probe] * self.max_batch)
        # They share the device: each takes as many times as long as there are lanes.
        return (time.monotonic() - began_s) * self.lanes

    def infer(self, pixels: Sequence[Pixels], *, lane: int = 0, alone: bool = True) -> TopClasses:
        """Classify 1 to `max_batch` pictures in one forward pass; in two or more, one after the other, where memory does not suffice.

        Args:
            pixels: each `[crop_px, crop_px, 3]` uint8 RGB.
            lane: which lane runs them, from 0; no other thread may use it meanwhile.
            alone: no other lane has work; only of lane 0.

        Returns:
            The class ids `[N, K]` and their softmax probabilities `[N, K]`, most probable first, K = min(100, classes). A picture whose
            pass overflowed has a row of NaN: the caller fails that picture alone.

        Raises:
            ValueError: there are too few or too many pictures, or one has another shape or type; nothing was run.
            RuntimeError: torch's, when the device fails.
        """
        return run_in_halves(partial(self._lanes[lane].infer, alone=alone), pixels)

    def logits(self, pixels: Sequence[Pixels]) -> NDArray[np.float32]:
        """Return the float32 logits `[N, classes]`, in class order, for the same pictures as `infer` takes; for comparisons."""
        return self._lanes[0].logits(pixels)

    def self_test(self, lane: int = 0) -> None:
        """Run one picture on a lane and compare with what it gave at warm-up: a device that has died or computes nonsense shows here.

        Raises:
            InferenceFailed: the pass failed or the answer has changed.
        """
        if self._probe_probabilities is None:
            raise InferenceFailed("The model has not been warmed up.")
        try:
            _ids, probabilities = self.infer([self._probe], lane=lane, alone=False)
        except RuntimeError as error:
            raise InferenceFailed("The device does not run the model any more.") from error
        if not np.allclose(probabilities[0], self._probe_probabilities, rtol=0, atol=_SELF_TEST_TOLERANCE):
            raise InferenceFailed("The device computes other numbers than when it started.")
