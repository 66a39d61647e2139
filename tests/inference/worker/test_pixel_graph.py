"""Folding batch norms changes how a network is computed, not what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference.types import ModelInfo, Preprocessing
from inference.worker.pixel_graph import PixelGraph
from inference.worker.weights import LoadedWeights

SIDE_PX = 8


class Foldable(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


class Shared(nn.Module):
    """The convolution's own answer is used too, so it must stay as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        planes = self.conv(batch)
        logits: torch.Tensor = self.head((planes + self.norm(planes)).mean((2, 3)))
        return logits


class ReusedConvolution(Shared):
    """One convolution, two batch norms after it: folding one would change the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.other(self.conv(self.norm(self.conv(batch)))).mean((2, 3)))
        return logits


class ReusedNorm(ReusedConvolution):
    """One batch norm after two convolutions."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.conv(self.norm(batch)) + batch).mean((2, 3)))
        return logits


class Untraceable(Foldable):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = super().forward(batch if float(batch.sum()) > 0 else batch * 1)  # type: ignore[no-untyped-call]
        return logits


def seeded(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    module = kind().eval().requires_grad_(requires_grad=False)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -1, 1)  # type: ignore[arg-type]  # tracked by default
            nn.init.uniform_(layer.running_var, 0.5, 3)  # type: ignore[arg-type]
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, -1, 1)
    return module


def loaded(module: nn.Module) -> LoadedWeights:
    info = ModelInfo(
        name="tiny",
        version="1",
        digest="sha256:0",
        precision="fp32",
        device="cpu",
        preprocessing=Preprocessing(resize_px=SIDE_PX, crop_px=SIDE_PX, interpolation="bilinear"),
        labels=("a", "b"),
    )
    return LoadedWeights(module=module, info=info, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@pytest.mark.parametrize(("kind", "norms_left"), [(Foldable, 0), (Shared, 1), (ReusedConvolution, 2), (ReusedNorm, 1), (Untraceable, 1)])
def test_the_logits_are_those_of_the_network_as_it_was(kind: type[nn.Module], norms_left: int) -> None:
    pixels = torch.randint(0, 256, (3, SIDE_PX, SIDE_PX, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    with torch.inference_mode():
        expected = seeded(kind)((pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
        graph = PixelGraph(loaded(seeded(kind)), torch.float32)
        torch.testing.assert_close(graph(pixels), expected, rtol=1e-4, atol=1e-5)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in graph.modules()) == norms_left
