"""The values that travel between the API, the engine's client and the engine. Plain data: no torch, no HTTP."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""One decoded, resized and cropped picture: `[crop_px, crop_px, 3]` uint8 RGB, C-contiguous."""

Interpolation = Literal["nearest", "bilinear", "bicubic"]


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True):
    """What an API worker does to a picture before the engine sees it, as the weights' own card says.

    Mean and standard deviation are not here: normalisation is part of the model graph, on the device.
    """

    resize_px: int
    """The shorter side after resizing, in pixels (torchvision's `resize_size`)."""
    crop_px: int
    """The side of the centre crop, in pixels."""
    interpolation: Interpolation


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One served model, as `/models` shows it, with what the API workers need to feed it and to name its classes."""

    name: str
    version: str
    digest: str
    """`sha256:` and the hexadecimal SHA-256 of the weights file."""
    precision: str
    """`fp32`, `bf16` or `fp16`."""
    device: str
    """`cpu`, or `cuda:0` and so on."""
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    """A label for each class id, in order; its length is the number of classes."""


Phase = Literal["starting", "downloading", "loading", "compiling", "warming", "ready", "unavailable"]


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the engines at this moment. `phase` is that of the engine furthest along."""

    phase: Phase
    detail: str = ""
    """One short public sentence for the caller of `/readyz`, such as `Downloading the weights: 34 %.`"""
    models: tuple[ModelInfo, ...] = ()

    @property
    def ready(self) -> bool:
        """True when a prediction asked for now would be run."""
        return self.phase == "ready"


class ClassScore(msgspec.Struct, frozen=True):
    """One class and its softmax probability, 0 to 1."""

    class_id: int
    label: str
    confidence: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """The answer for one picture: the `top_k` classes, most probable first, and what it took."""

    scores: tuple[ClassScore, ...]
    model: ModelInfo
    queue_ms: float
    """From the engine's receipt of the pixels to the start of their batch."""
    infer_ms: float
    """The forward pass of the batch, copies and top-k included."""
    batch_size: int
    """How many pictures shared that forward pass."""
    engine: str | None = None
    """Which engine ran it, where there are several to tell apart."""
