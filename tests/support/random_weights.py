"""Random weights that tell pictures apart, so that a comparison of two pipelines can fail.

A freshly initialised network calls every picture the same: a ViT's head is zero, ConvNeXt's layer scale is 1e-6, and batch-norm statistics
that were never measured let the signal die out. Parity on such a network proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import nn
from torchvision import models  # type: ignore[import-untyped]  # torchvision ships no types

SPREAD = 2.0
"""The standard deviation of a class's logit between the pictures that a network was randomised with."""


def random_classifier(model: str, pictures: Sequence[Image.Image], *, seed: int = 0) -> nn.Module:
    """Build torchvision's classifier `model` with seeded weights under which the given pictures (two or more) get clearly different logits.

    Returns:
        The eager network in inference mode, float32, for the input that the model's DEFAULT card describes. Its state dict has the keys of
        torchvision's own file.
    """
    transforms = models.get_model_weights(model).DEFAULT.transforms()
    module: nn.Module = models.get_model_builder(model)(weights=None)
    randomise(module, torch.stack([transforms(picture) for picture in pictures]), seed=seed)
    return module


def randomise(module: nn.Module, probes: torch.Tensor, *, seed: int = 0) -> None:
    """Fill a classifier with seeded random weights fitted to `probes` (`[N,3,H,W]` normalised, N at least 2); leave it in eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, mean: float, std: float) -> None:
        tensor.normal_(mean, std, generator=generator)

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() >= 2 and not name.endswith(("layer_scale", "pos_embedding", "class_token")):
                normal(parameter, 0.0, math.sqrt(2 / parameter[0].numel()))
            elif name.endswith("layer_scale"):
                parameter.uniform_(0.2, 0.8, generator=generator)
            elif name.endswith("bias"):
                normal(parameter, 0.0, 0.2)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                normal(parameter, 0.0, 0.5)
        _measure_batch_norm(module, probes)
        _spread_logits(module, probes)
    module.eval()


def _measure_batch_norm(module: nn.Module, probes: torch.Tensor) -> None:
    """Set each batch norm's running statistics to what the probes bring it, all else being in inference mode."""
    module.eval()
    layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.train()
        layer.momentum = 1.0
    module(probes)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


def _spread_logits(module: nn.Module, probes: torch.Tensor) -> None:
    """Centre each class's logit on the probes and stretch the differences between them to `SPREAD`."""
    head = next(layer for layer in reversed(list(module.modules())) if isinstance(layer, nn.Linear))
    logits = module(probes)
    factor = SPREAD / logits.std(dim=0).mean()
    head.weight *= factor
    head.bias.copy_((head.bias - logits.mean(dim=0)) * factor)
