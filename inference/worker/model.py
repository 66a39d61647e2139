"""The model on its device: uint8 pictures in, classes and probabilities out."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inference.errors import InferenceFailed, ModelLoadError
from inference.settings import InferenceSettings
from inference.types import ModelInfo, Pixels
from inference.worker.device import dtype_of, resolve_device, resolve_precision
from inference.worker.weights import LoadedWeights

MAX_TOP_K = 100
"""The most classes that a prediction can name (the contract's `top_k`)."""

# Up to here every batch size is run once at warm-up; above, doubling sizes are, as the libraries choose their kernels by magnitude.
_EACH_SIZE_UP_TO = 8
# Two runs of one batch on one device agree to far less than this; a broken device does not come near.
_SELF_TEST_TOLERANCE = 1e-2


class DeviceModel:
    """Runs batches of pictures. Not thread-safe: one thread owns it, since it has one staging buffer."""

    info: ModelInfo
    """With the precision and the device that it really runs with."""
    max_batch: int

    def __init__(self, loaded: LoadedWeights, settings: InferenceSettings) -> None:
        """Choose device and precision by the settings and move `loaded.module` there, in place.

        Raises:
            ModelLoadError: the device is not there or its memory is too small.
        """
        self._device = resolve_device(settings.device)
        precision = resolve_precision(settings.precision, self._device)
        self.max_batch = settings.max_batch
        self.info = msgspec.structs.replace(loaded.info, precision=precision, device=str(self._device))
        self._top_k = min(MAX_TOP_K, len(self.info.labels))
        if self._device.type == "cuda" and precision == "fp32":
            # cuDNN would otherwise compute convolutions in TF32, with 10 bits of mantissa instead of the 23 that were asked for.
            torch.backends.cudnn.allow_tf32 = False
        crop_px = self.info.preprocessing.crop_px
        try:
            self._graph = PixelGraph(loaded, dtype_of(precision)).to(self._device)
            self._staging = torch.empty((self.max_batch, crop_px, crop_px, 3), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        except torch.OutOfMemoryError as error:
            raise ModelLoadError(f"{self.info.name} does not fit into the memory of {self._device}.") from error
        self._staging_array = self._staging.numpy()
        generator = np.random.default_rng(0)
        self._probe: Pixels = generator.integers(0, 256, size=(crop_px, crop_px, 3), dtype=np.uint8)
        self._probe_probabilities: NDArray[np.float32] | None = None

    def warm_up(self) -> None:
        """Run real forward passes, the largest batch first, so that no caller meets a first-time cost or a shortage of memory.

        Every batch size up to 8 is run, above that the powers of two and `max_batch`.

        Raises:
            ModelLoadError: a pass failed or gave numbers that are not finite.
        """
        sizes = {size for size in range(1, self.max_batch + 1) if size <= _EACH_SIZE_UP_TO or size & (size - 1) == 0} | {self.max_batch}
        for size in sorted(sizes, reverse=True):
            try:
                _ids, probabilities = self.infer([self._probe] * size)
            except torch.OutOfMemoryError as error:
                raise ModelLoadError(
                    f"A batch of {size} pictures does not fit into the memory of {self._device}: lower LENSGATE_INFERENCE__MAX_BATCH."
                ) from error
            except RuntimeError as error:
                raise ModelLoadError(
                    f"{self.info.name} does not run in {self.info.precision} on {self.info.device}: {str(error).splitlines()[0]}"
                ) from error
            if not np.isfinite(probabilities).all():
                raise ModelLoadError(
                    f"{self.info.name} gives no finite numbers in {self.info.precision}: the weights are broken, "
                    "or LENSGATE_INFERENCE__PRECISION=fp32 is needed."
                )
            self._probe_probabilities = probabilities[0]

    def infer(self, pixels: Sequence[Pixels]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Classify 1 to `max_batch` pictures in one forward pass.

        Args:
            pixels: each `[crop_px, crop_px, 3]` uint8 RGB.

        Returns:
            The class ids `[N, K]` and their softmax probabilities `[N, K]`, most probable first, K = min(100, classes). A picture whose
            pass overflowed has a row of NaN: the caller fails that picture alone.

        Raises:
            ValueError: there are too few or too many pictures, or one has another shape or type; nothing was run.
            RuntimeError: torch's, when the device fails.
        """
        logits = self._forward(pixels)
        with torch.inference_mode():
            probabilities, ids = torch.softmax(logits, dim=1).topk(self._top_k, dim=1)
            return ids.cpu().numpy(), probabilities.cpu().numpy()

    def logits(self, pixels: Sequence[Pixels]) -> NDArray[np.float32]:
        """Return the float32 logits `[N, classes]`, in class order, for the same pictures as `infer` takes; for comparisons."""
        return self._forward(pixels).cpu().numpy()

    def self_test(self) -> None:
        """Run one picture and compare with what it gave at warm-up: a device that has died or computes nonsense shows here.

        Raises:
            InferenceFailed: the pass failed or the answer has changed.
        """
        if self._probe_probabilities is None:
            raise InferenceFailed("The model has not been warmed up.")
        try:
            _ids, probabilities = self.infer([self._probe])
        except RuntimeError as error:
            raise InferenceFailed("The device does not run the model any more.") from error
        if not np.allclose(probabilities[0], self._probe_probabilities, rtol=0, atol=_SELF_TEST_TOLERANCE):
            raise InferenceFailed("The device computes other numbers than when it started.")

    def _forward(self, pixels: Sequence[Pixels]) -> torch.Tensor:
        count = len(pixels)
        if not 1 <= count <= self.max_batch:
            raise ValueError(f"a batch has 1 to {self.max_batch} pictures, not {count}")
        shape = self._staging_array.shape[1:]
        for index, picture in enumerate(pixels):
            # numpy would stretch a smaller array to fit, without a word.
            if picture.shape != shape or picture.dtype != np.uint8:
                raise ValueError(f"a picture is {shape} uint8, not {picture.shape} {picture.dtype}")
            self._staging_array[index] = picture
        with torch.inference_mode():
            batch = self._staging[:count].to(self._device, non_blocking=True)
            logits: torch.Tensor = self._graph(batch)
            return logits


class PixelGraph(nn.Module):
    """The network with its normalisation in front: `[N,H,W,3]` uint8 to `[N,classes]` float32 logits."""

    scale: torch.Tensor
    bias: torch.Tensor

    def __init__(self, loaded: LoadedWeights, dtype: torch.dtype) -> None:
        """Take `loaded.module` over, converted in place to `dtype` and channels-last memory."""
        super().__init__()
        mean = torch.tensor(loaded.mean, dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor(loaded.std, dtype=torch.float64).view(1, 3, 1, 1)
        # (pixel / 255 - mean) / std as one multiply-add.
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("bias", (-mean / std).float())
        self._dtype = dtype
        self._network = loaded.module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # untyped in torch
        for layer in self._network.modules():
            # The running variance spans many powers of two, and 8 bits of mantissa lose accuracy for no speed (measured: none gained).
            if isinstance(layer, nn.BatchNorm2d):
                layer.float()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise in float32, where the subtraction of the mean costs no accuracy, then run the network in its own precision."""
        # The permuted view of pictures in rows is channels-last memory already: nothing is copied.
        planes = pixels.permute(0, 3, 1, 2).to(torch.float32)
        logits: torch.Tensor = self._network(torch.addcmul(self.bias, planes, self.scale).to(self._dtype))
        return logits.float()
