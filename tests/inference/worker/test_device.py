from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from inference.errors import ModelLoadError
from inference.worker.device import dtype_of, resolve_device, resolve_precision, set_up_gpu

CPU = torch.device("cpu")


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
    assert resolve_precision("auto", CPU, "resnet50") == precision


def test_a_gpu_gets_fp16() -> None:
    assert resolve_precision("auto", torch.device("cuda:0"), "resnet50") == "fp16"


def test_the_packaged_model_keeps_its_accuracy_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert resolve_precision("auto", CPU, "resnet50") == "bf16"
    assert resolve_precision("auto", CPU, "efficientnet_lite0") == "fp32"
    assert resolve_precision("bf16", CPU, "efficientnet_lite0") == "bf16"


@pytest.mark.parametrize("setting", ["fp32", "bf16", "fp16"])
def test_a_precision_that_is_asked_for_is_taken(setting: str) -> None:
    assert resolve_precision(setting, CPU, "resnet50") == setting


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
