"""The settings of the section `LENSGATE_INFERENCE__`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

PACKAGED_MODEL: Final = "efficientnet_lite0"
PACKAGED_WEIGHTS: Final = f"package:{PACKAGED_MODEL}"
"""Of this model only, and it has no others."""


class InferenceSettings(BaseModel):
    """Which model is served, on what, and the bounds on pictures, batches and waiting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        default="resnet50",
        pattern=r"^[a-z0-9_]+$",
        description="Any image classifier of torchvision by name (resnet50, vit_b_16, efficientnet_b3, ...), or efficientnet_lite0.",
    )
    weights: str = Field(
        default="DEFAULT",
        validate_default=True,
        min_length=1,
        description=(
            "DEFAULT, a torchvision weights name such as IMAGENET1K_V2, a local .pth or .safetensors file, or package:efficientnet_lite0."
        ),
    )
    card: str | None = Field(
        default=None,
        description=(
            "For a local weights file: the torchvision weights name whose preprocessing it was trained with (unset: the model's DEFAULT)."
        ),
    )
    labels: Path | None = Field(
        default=None,
        description="A text file with one label a line, in class order. Its length is the class count of a local weights file.",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto (CUDA where there is a GPU, else the CPU), cpu, cuda, or cuda:N.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description=(
            "auto, fp32, bf16 or fp16. auto is fp16 on a GPU; on a CPU bf16 where it has instructions for it and the network has no "
            "depthwise convolutions of 5x5 or fewer weights (MobileNet, EfficientNet, ...), else fp32."
        ),
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description=(
            "Compile the model for this machine's CPU: once, in about a minute, and kept in the user's cache folder. "
            "auto goes on without where there is no C++ compiler, on stops instead. A GPU needs none."
        ),
    )
    max_batch: int = Field(default=8, ge=1, le=256, description="The most pictures in one forward pass.")
    queue_size: int = Field(default=256, ge=1, le=65536, description="The most pictures waiting in one engine; one more is answered 503.")
    deadline_s: float = Field(
        default=10.0, gt=0, le=300, description="Seconds from the end of decoding to the labels; later is answered 504."
    )
    stuck_after_s: float = Field(
        default=20.0,
        ge=2,
        le=600,
        description=(
            "Seconds of silence, or in one forward pass, after which an engine is killed and started again; for an API worker, of silence."
        ),
    )
    max_pixels: int = Field(
        default=50_000_000,
        ge=1,
        le=500_000_000,
        description="The most pixels (width x height) that a picture's header may promise; more is answered 413.",
    )
    gpu_memory_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="The share of each GPU's memory that its engine may use. Below 1 where others use the GPU too.",
    )

    @field_validator("labels")
    @classmethod
    def _expand_home(cls, value: Path | None) -> Path | None:
        return None if value is None else Path(os.path.expanduser(value))  # noqa: PTH111  Path's own raises for an unknown user

    # Checks across settings stand at the last one of them, and look at what is good of the others: so one bad value hides no other.
    @field_validator("weights")
    @classmethod
    def _are_the_models(cls, value: str, info: ValidationInfo) -> str:
        model = info.data.get("model")
        is_packaged = value.startswith("package:") or model == PACKAGED_MODEL
        if model is not None and is_packaged and (model, value) != (PACKAGED_MODEL, PACKAGED_WEIGHTS):
            raise ValueError(
                f"LENSGATE_INFERENCE__MODEL={PACKAGED_MODEL} and LENSGATE_INFERENCE__WEIGHTS={PACKAGED_WEIGHTS} go together, "
                f"but the settings say {model} and {value}"
            )
        return value

    @field_validator("card")
    @classmethod
    def _goes_with_a_file(cls, value: str | None, info: ValidationInfo) -> str | None:
        weights = info.data.get("weights")
        if value is not None and weights is not None and _local_file(weights) is None:
            raise ValueError(f"goes with a local weights file only; LENSGATE_INFERENCE__WEIGHTS={weights} has its own card")
        return value

    @property
    def weights_path(self) -> Path | None:
        """The local file that `weights` names, or None when it names a card or a package."""
        return _local_file(self.weights)


def _local_file(weights: str) -> Path | None:
    is_file = weights.endswith((".pth", ".pt", ".safetensors")) or "/" in weights
    if not is_file or weights.startswith("package:"):
        return None
    try:
        return Path(weights).expanduser()
    except RuntimeError:  # ~name, of somebody who has no home here: then no such file is there, and that is said
        return Path(weights)
