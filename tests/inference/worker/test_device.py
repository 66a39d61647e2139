from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torchvision import models  # type: ignore[import-untyped]  # torchvision ships no types

from inference.errors import ModelLoadError
from inference.worker.device import dtype_of, resolve_device, resolve_precision, set_up_gpu

CPU = torch.device("cpu")
PLAIN = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Linear(8, 2))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_auto_is_the_cpu_where_there_is_no_gpu(no_gpu: None) -> None:
    assert resolve_device("auto") == CPU


@pytest.mark.parametrize(("setting", "device"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_with_gpus_the_setting_chooses_one(setting: str, device: str, two_gpus: None) -> None:
    assert str(resolve_device(setting)) == device


@pytest.mark.parametrize("setting", ["cuda", "cuda:0"])
def test_a_gpu_that_is_asked_for_and_absent_stops_the_start(setting: str, no_gpu: None) -> None:
    with pytest.raises(ModelLoadError, match=f"DEVICE={setting}, but"):
        resolve_device(setting)


def test_a_gpu_past_the_last_one_stops_the_start(two_gpus: None) -> None:
    with pytest.raises(ModelLoadError, match="there are 2 GPUs"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True, "avx512_bf16": False}, "fp32"), ({}, "fp32")],
)
def test_a_cpu_gets_bf16_only_where_it_has_instructions_for_it(
    capabilities: dict[str, bool], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", CPU, PLAIN) == precision


def test_a_gpu_gets_fp16() -> None:
    assert resolve_precision("auto", torch.device("cuda:0"), nn.Conv2d(8, 8, 3, groups=8)) == "fp16"


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        *(("resnet50", "bf16"), ("resnext50_32x4d", "bf16"), ("vit_b_16", "bf16"), ("convnext_tiny", "bf16")),
        *(("mobilenet_v3_small", "fp32"), ("efficientnet_b0", "fp32"), ("mnasnet0_5", "fp32"), ("shufflenet_v2_x0_5", "fp32")),
    ],
)
def test_a_network_with_small_depthwise_convolutions_keeps_its_accuracy_on_a_cpu(
    model: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    with torch.device("meta"):
        network = models.get_model(model)
    assert resolve_precision("auto", CPU, network) == precision
    assert resolve_precision("bf16", CPU, network) == "bf16"


@pytest.mark.parametrize("setting", ["fp32", "bf16", "fp16"])
def test_a_precision_that_is_asked_for_is_taken(setting: str) -> None:
    assert resolve_precision(setting, CPU, PLAIN) == setting


def test_each_precision_is_a_torch_dtype() -> None:
    assert [dtype_of(name) for name in ("fp32", "bf16", "fp16")] == [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def cudnn_restored() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(("fraction", "asked"), [(0.25, [(0.25, torch.device("cuda:0"))]), (1.0, [])])
def test_a_gpu_is_shared_only_where_that_is_asked_for(
    fraction: float, asked: list[tuple[float, torch.device]], monkeypatch: pytest.MonkeyPatch, cudnn_restored: None
) -> None:
    seen: list[tuple[float, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *arguments: seen.append(arguments))
    set_up_gpu(torch.device("cuda:0"), "bf16", fraction)
    assert seen == asked


def test_fp32_is_computed_in_fp32(cudnn_restored: None) -> None:
    torch.backends.cudnn.allow_tf32 = True
    set_up_gpu(torch.device("cuda:0"), "bf16", 1.0)
    assert torch.backends.cudnn.allow_tf32
    set_up_gpu(torch.device("cuda:0"), "fp32", 1.0)
    assert not torch.backends.cudnn.allow_tf32
