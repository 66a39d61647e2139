"""ResNet-50 as the other servers use it: torchvision's own preprocessing, the best number format, eager or compiled."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_RESIZE_PX, _CROP_PX = 232, 224
"""Those of torchvision's card of ResNet-50."""


def open_picture(data: bytes) -> Image.Image:
    """As every tutorial does it."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def crop(picture: Image.Image) -> NDArray[np.uint8]:
    """What torchvision's preset does before it makes a tensor: for a stubbed model, which needs none."""
    scale = _RESIZE_PX / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    left, top = (width - _CROP_PX) // 2, (height - _CROP_PX) // 2
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + _CROP_PX, top + _CROP_PX)))


def load_network(weights: Path, precision: str, *, compiled: bool) -> Any:  # noqa: ANN401 # a network, or what torch.compile makes of it
    """The network on the GPU if there is one, channels-last, frozen; with `compiled` by torch.compile, one graph for each batch size."""
    import torch
    import torch._dynamo
    import torch._inductor.config
    from torchvision import models  # type: ignore[import-untyped]  # torchvision ships no types

    network = models.resnet50()
    network.load_state_dict(torch.load(weights))
    network = network.eval().requires_grad_(False).to(device(), dtype(precision), memory_format=torch.channels_last)
    if not compiled:
        return network
    torch._inductor.config.freezing = True  # noqa: SLF001  its documented name
    torch._dynamo.config.recompile_limit = 64  # noqa: SLF001  as above; one graph for each size is wanted
    return torch.compile(network, dynamic=False, mode="reduce-overhead" if device() == "cuda" else None)


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype(precision: str) -> Any:  # noqa: ANN401 # torch.dtype, without torch here
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


class Classifier:
    """Pictures in, answers out. Batches of any size up to `max_batch`; each has been run once."""

    def __init__(self, weights: Path, precision: str, *, compiled: bool, max_batch: int) -> None:
        import torch
        from torchvision import models

        card = models.ResNet50_Weights.DEFAULT
        self.prepare: Callable[[Image.Image], torch.Tensor] = card.transforms()
        self._labels: Sequence[str] = card.meta["categories"]
        self._dtype, self._device = dtype(precision), device()
        self._network = load_network(weights, precision, compiled=compiled)
        for size in range(max_batch, 0, -1):
            for _ in range(2):
                self.classify(torch.zeros(size, 3, _CROP_PX, _CROP_PX))

    def classify(self, batch: Any) -> list[dict[str, Any]]:  # noqa: ANN401 # a tensor, without torch here
        """The most probable class of each picture of `[N,3,224,224]`."""
        import torch

        with torch.inference_mode():
            inputs = batch.to(self._device, self._dtype, memory_format=torch.channels_last)
            scores, ids = self._network(inputs).float().softmax(dim=1).max(dim=1)
        return [
            {"class_id": number, "label": self._labels[number], "confidence": score}
            for number, score in zip(ids.tolist(), scores.tolist(), strict=True)
        ]
