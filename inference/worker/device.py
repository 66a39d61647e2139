"""Chooses the device and the number format that a model runs with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from inference.errors import ModelLoadError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Rounded to bf16, so few weights do not average out: the packaged model, whose depthwise filters are 3x3 and 5x5, then names another class
# than in float32 for 3 to 7 of 100 crops (benchmarks/accuracy.py). Other networks with such filters are taken to be like it.
_FEW_WEIGHTS = 5 * 5


def resolve_device(setting: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`; `cuda` is `cuda:0`.

    Raises:
        ModelLoadError: a CUDA device is asked for that is not there.
    """
    if setting == "cpu":
        return torch.device("cpu")
    available = torch.cuda.is_available()
    if setting == "auto":
        return torch.device("cuda:0" if available else "cpu")
    if not available:
        built = "the installed torch is a build without CUDA" if torch.version.cuda is None else "torch finds no NVIDIA GPU or driver"
        raise ModelLoadError(f"LENSGATE_INFERENCE__DEVICE={setting}, but {built}. Use auto or cpu.")
    device = torch.device(setting)
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise ModelLoadError(f"LENSGATE_INFERENCE__DEVICE={setting}, but there are {torch.cuda.device_count()} GPUs, counted from 0.")
    return torch.device("cuda", index)


def resolve_precision(setting: str, device: torch.device, network: nn.Module) -> str:
    """Return `fp32`, `bf16` or `fp16`.

    `auto` is fp16 on a GPU. On a CPU it is bf16 where that has instructions for it, and fp32 where it has none or the network has small
    depthwise convolutions.
    """
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "fp16"  # as fast as bf16 in the tensor cores, with 3 more bits of mantissa; one that overflows is found at warm-up
    return "bf16" if _cpu_computes_bf16() and not _has_small_depthwise_convolutions(network) else "fp32"


def _has_small_depthwise_convolutions(network: nn.Module) -> bool:
    """MobileNet, MNASNet, EfficientNet, ShuffleNet and MaxViT have them; ConvNeXt's depthwise filters have 49 weights each."""
    return any(
        isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1 and layer.weight[0].numel() <= _FEW_WEIGHTS
        for layer in network.modules()
    )


def set_up_gpu(device: torch.device, precision: str, memory_fraction: float) -> None:
    """Settle what holds for all that this process does on the GPU; before anything is put there."""
    if memory_fraction < 1:
        torch.cuda.set_per_process_memory_fraction(memory_fraction, device)
    # Few shapes, and each of them runs for days: it pays to try every algorithm.
    torch.backends.cudnn.benchmark = True
    if precision == "fp32":
        # cuDNN would otherwise compute convolutions in TF32, with 10 bits of mantissa instead of the 23 that were asked for.
        torch.backends.cudnn.allow_tf32 = False


def pci_bus_id(device: str) -> str | None:
    """Where on the machine's PCI bus a CUDA device is, as NVIDIA's tools write it; None for the CPU."""
    if not device.startswith("cuda"):
        return None
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stubs lack what we need
    return f"{properties.pci_domain_id:08X}:{properties.pci_bus_id:02X}:{properties.pci_device_id:02X}.0"


def dtype_of(precision: str) -> torch.dtype:
    """Return torch's name for `fp32`, `bf16` or `fp16`."""
    return _DTYPES[precision]


def _cpu_computes_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
