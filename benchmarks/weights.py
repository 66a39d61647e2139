"""Seeded random ResNet-50 weights that tell the photographs apart: every server must name the right one, in any precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

EXPECTED_CLASS = 500
"""The class of the photograph that is sent; the other photographs have the next ones. None of them is what an idle server would say."""

_MARGIN = 12.0
"""By how much the logit of a photograph's own class stands out."""


def random_weights(model: str, folder: Path) -> Path:
    """The file of torchvision's classifier `model`, made once and kept in `folder`."""
    path = folder / f"{model}.pth"
    if path.is_file():
        return path
    # Imported here: whoever only asks for the path of a file that is there needs no torch.
    import torch
    from torchvision import models  # type: ignore[import-untyped]  # torchvision ships no types

    from benchmarks.pictures import load_photographs

    torch.manual_seed(0)
    module: torch.nn.Module = models.get_model(model, weights=None)
    prepare = models.get_model_weights(model).DEFAULT.transforms()
    probes = torch.stack([prepare(photograph) for photograph in load_photographs()])
    features: list[torch.Tensor] = []
    heads = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    heads[-1].register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.inference_mode():
        _measure_batch_norm(module, probes)
        module(probes)
        # Each photograph's class is the direction in which it differs from the others; all other classes are near zero.
        differences = features[-1] - features[-1].mean(dim=0)
        head = heads[-1]
        head.weight.normal_(0.0, 1e-3)
        own = slice(EXPECTED_CLASS, EXPECTED_CLASS + len(probes))
        head.weight[own] = differences * (_MARGIN / differences.square().sum(dim=1, keepdim=True))
        head.bias.zero_()
        head.bias[own] = -(head.weight[own] * features[-1].mean(dim=0)).sum(dim=1)
    torch.save(module.state_dict(), path)
    return path


def _measure_batch_norm(module: nn.Module, probes: Tensor) -> None:
    """Set the running statistics to what the photographs bring, so that the signal neither dies nor explodes."""
    from torch import nn

    module.eval()
    layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in layers:
        layer.train()
        layer.momentum = 1.0
    module(probes)
    for layer in layers:
        layer.momentum = 0.1
        layer.eval()
