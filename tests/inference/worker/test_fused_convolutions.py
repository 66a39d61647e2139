"""Fusing changes how a network is computed, not what; and what cannot be fused soundly is left as it was."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import structlog
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  its usual name
from torchvision import models  # type: ignore[import-untyped]  # torchvision ships no types

from inference.types import ModelInfo, Preprocessing
from inference.worker.fused_convolutions import CUDNN, FusedOperations, fuse_convolutions, nearly_equal
from inference.worker.pixel_graph import PixelGraph
from inference.worker.weights import LoadedWeights

SIDE_PX = 8


def relu(source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *geometry: Any) -> torch.Tensor:  # noqa: ANN401
    """What `torch.cudnn_convolution_relu` computes."""
    return F.conv2d(source, weight, bias, *geometry).relu()


def add_relu(
    source: torch.Tensor,
    weight: torch.Tensor,
    added: torch.Tensor,
    alpha: float,
    bias: torch.Tensor,
    *geometry: Any,  # noqa: ANN401
) -> torch.Tensor:
    """What `torch.cudnn_convolution_add_relu` computes."""
    return (F.conv2d(source, weight, bias, *geometry) + alpha * added).relu()


ON_CPU = FusedOperations(relu, add_relu)


def examples(channels: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(count, channels, SIDE_PX, SIDE_PX, generator=generator) for count in (1, 3)]


def targets(module: nn.Module | None) -> list[object]:
    assert isinstance(module, torch.fx.GraphModule)
    return [node.target for node in module.graph.nodes]


class Block(nn.Module):
    """A convolution, and the ways in which networks write what follows it."""

    def __init__(self, after: Callable[[Any, torch.Tensor, torch.Tensor], Any], **options: Any) -> None:  # noqa: ANN401
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(8, 8, 3, **{"padding": 1} | options)
        self.other = nn.Conv2d(8, 8, 1)
        self.relu, self.relu_in_place = nn.ReLU(), nn.ReLU(inplace=True)
        self._after = after
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._after(self, self.conv(batch), batch)
        return result


def _skip_in_place(block: Any, planes: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    planes += batch
    result: torch.Tensor = block.relu_in_place(planes)
    return result


FUSED: dict[str, tuple[Callable[..., torch.Tensor], object]] = {
    "module": (lambda block, planes, _: block.relu(planes), relu),
    "module in place": (lambda block, planes, _: block.relu_in_place(planes), relu),
    "function": (lambda _, planes, __: F.relu(planes), relu),
    "function in place": (lambda _, planes, __: F.relu(planes, inplace=True), relu),
    "method": (lambda _, planes, __: planes.relu(), relu),
    "method in place": (lambda _, planes, __: planes.relu_(), relu),
    "torch.relu": (lambda _, planes, __: torch.relu(planes), relu),
    "sum": (lambda _, planes, batch: F.relu(planes + batch), add_relu),
    "sum the other way": (lambda _, planes, batch: F.relu(batch + planes), add_relu),
    "sum in place": (_skip_in_place, add_relu),
    "torch.add": (lambda _, planes, batch: torch.relu(torch.add(planes, batch)), add_relu),
    "method add_": (lambda _, planes, batch: planes.add_(batch).relu_(), add_relu),
    "sum of two convolutions": (lambda block, planes, batch: F.relu(planes + block.other(batch)), add_relu),
}


@pytest.mark.parametrize("name", FUSED)
def test_a_convolution_takes_in_what_follows_it(name: str) -> None:
    after, operation = FUSED[name]
    fused = fuse_convolutions(Block(after), examples(), ON_CPU)
    assert operation in targets(fused)
    assert not {"relu", "relu_in_place", "conv"} & set(targets(fused))
    assert fused is not None
    for example in examples():
        torch.testing.assert_close(fused(example), Block(after)(example.clone()))


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2, "padding": 2}, {"padding": (2, 1)}])
def test_the_geometry_of_the_convolution_is_kept(options: dict[str, Any]) -> None:
    def block() -> Block:
        return Block(lambda block, planes, _: block.relu(planes), **options)

    fused = fuse_convolutions(block(), examples(), ON_CPU)
    assert relu in targets(fused)
    assert fused is not None
    torch.testing.assert_close(fused(examples()[1]), block()(examples()[1]))


def _sum_kept(_: Any, planes: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    total = planes + batch
    return total * F.relu(total)


LEFT: dict[str, tuple[Callable[..., torch.Tensor], dict[str, Any]]] = {
    "groups": (lambda block, planes, _: block.relu(planes), {"groups": 2}),
    "no bias": (lambda block, planes, _: block.relu(planes), {"bias": False}),
    "other padding": (lambda block, planes, _: block.relu(planes), {"padding_mode": "reflect"}),
    "padding by name": (lambda block, planes, _: block.relu(planes), {"padding": "same"}),
    "another activation": (lambda _, planes, __: F.relu6(planes), {}),
    "the convolution's result is used twice": (lambda block, planes, _: planes + block.relu(planes), {}),
    "the sum is used twice": (_sum_kept, {}),
    "a factor": (lambda _, planes, batch: F.relu(torch.add(planes, batch, alpha=2)), {}),
    "a number is added": (lambda _, planes, __: F.relu(planes + 1), {}),
    "itself is added": (lambda _, planes, __: F.relu(planes + planes), {}),
    "three are added": (lambda _, planes, batch: F.relu(planes + batch + batch), {}),
    "it is added into the other": (lambda _, planes, batch: (batch * 2).add_(planes).relu(), {}),
    "what is added is smaller": (lambda _, planes, batch: F.relu(planes + batch.mean((2, 3), keepdim=True)), {}),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_fused_is_left(name: str) -> None:
    after, options = LEFT[name]
    with structlog.testing.capture_logs() as lines:
        assert fuse_convolutions(Block(after, **options), examples(), ON_CPU) is None
    assert [line["event"] for line in lines] == ["convolutions_not_fused"]


def test_a_convolution_without_a_relu_stays_in_a_network_where_others_are_fused() -> None:
    def network() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(8, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 8, 1), nn.ReLU()).eval()

    fused = fuse_convolutions(network(), examples(), ON_CPU)
    assert targets(fused)[1:3] == ["0", "1"]
    assert relu in targets(fused)


def test_a_network_that_cannot_be_traced_is_left_and_the_log_says_why() -> None:
    block = Block(lambda block, planes, _: block.relu(planes) if planes.sum() > 0 else planes)
    with structlog.testing.capture_logs() as lines:
        assert fuse_convolutions(block, examples(), ON_CPU) is None
    assert lines[0]["reason"].startswith("the network cannot be traced: ")


def _nan_the_second_time() -> Callable[..., torch.Tensor]:
    calls: list[None] = []

    def operation(*arguments: Any) -> torch.Tensor:  # noqa: ANN401
        calls.append(None)
        return relu(*arguments) * (math.nan if len(calls) > 1 else 1)

    return operation


def _refusing(*_: object) -> torch.Tensor:
    raise RuntimeError("GET was unable to find an engine to execute this computation\nmore")


def _different_for_several(source: torch.Tensor, *arguments: Any) -> torch.Tensor:  # noqa: ANN401
    return relu(source, *arguments) * (1 if len(source) == 1 else 1.1)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (_refusing, "conv: GET was unable to find an engine to execute this computation"),
        (lambda *arguments: relu(*arguments) * 1.1, "conv: its numbers differ"),
        (lambda *arguments: relu(*arguments) * math.nan, "conv: its numbers differ"),
        (lambda *arguments: relu(*arguments)[:, :4], "conv: its numbers differ"),
        (_nan_the_second_time(), "conv: its numbers differ"),
        (_different_for_several, "conv: its numbers differ"),
    ],
    ids=["raises", "wrong", "NaN", "another shape", "reads what it writes over", "wrong for larger batches"],
)
def test_an_operation_that_fails_or_differs_is_not_used_and_the_log_says_why(operation: Callable[..., torch.Tensor], reason: str) -> None:
    block = Block(lambda block, planes, _: block.relu(planes))
    with structlog.testing.capture_logs() as lines:
        assert fuse_convolutions(block, examples(), dataclasses.replace(ON_CPU, relu=operation)) is None
    assert [(line["event"], line["reason"]) for line in lines] == [("convolutions_not_fused", reason)]


def test_a_whole_residual_network_is_fused_but_for_what_is_refused() -> None:
    def eight_channels_or_more(source: torch.Tensor, *arguments: Any) -> torch.Tensor:  # noqa: ANN401
        if source.shape[1] < 8:
            raise RuntimeError("too few channels")
        return relu(source, *arguments)

    torch.manual_seed(4)
    info = ModelInfo(
        name="resnet18",
        version="1",
        digest="sha256:0",
        precision="fp32",
        device="cpu",
        preprocessing=Preprocessing(resize_px=64, crop_px=64, interpolation="bilinear"),
        labels=("",),
    )
    module = models.resnet18(weights=None).eval().requires_grad_(requires_grad=False)
    graph = PixelGraph(LoadedWeights(module=module, info=info, mean=(0.5,) * 3, std=(0.5,) * 3), torch.float32)
    pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with structlog.testing.capture_logs() as lines:
        fused = fuse_convolutions(graph, [pictures], dataclasses.replace(ON_CPU, relu=eight_channels_or_more))
    assert fused is not None
    # The first one, and two in each of eight blocks.
    assert [(line["layers_fused"], line["layers_left"], line["reason"]) for line in lines] == [(16, 1, "_network.conv1: too few channels")]
    torch.testing.assert_close(fused(pictures), graph(pictures), rtol=1e-3, atol=1e-4)
    assert {parameter.data_ptr() for parameter in fused.parameters()} == {parameter.data_ptr() for parameter in graph.parameters()}


def test_nearly_equal_knows_shapes_and_numbers_that_are_not_finite() -> None:
    ones = torch.ones(3)
    assert nearly_equal(ones * 1.01, ones, 0.02)
    assert not nearly_equal(ones * 1.03, ones, 0.02)
    assert not nearly_equal(torch.tensor([1, 1, math.nan]), ones, 0.02)
    assert not nearly_equal(torch.ones(4), ones, 0.02)
    assert nearly_equal(torch.zeros(3), torch.zeros(3), 0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["module", "sum"])
def test_on_a_gpu_cudnn_computes_the_same(name: str, precision: torch.dtype, cuda: torch.device) -> None:
    after, _ = FUSED[name]
    block = Block(after).to(device=cuda, dtype=precision, memory_format=torch.channels_last)  # type: ignore[call-overload]  # untyped in torch
    on_gpu = [example.to(device=cuda, dtype=precision, memory_format=torch.channels_last) for example in examples()]
    fused = fuse_convolutions(block, on_gpu)
    assert fused is not None
    assert {CUDNN.relu, CUDNN.add_relu} & set(targets(fused))
    for example in on_gpu:
        assert nearly_equal(fused(example), block(example), 0.02)
