"""The gauges of a GPU: with NVML's own functions replaced, and with a real GPU where there is one."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import structlog
import torch
from prometheus_client import CollectorRegistry

from inference.worker.device import pci_bus_id
from inference.worker.gpu_metrics import GpuMetrics

BUS_ID = "00000000:3B:00.0"
WHICH = {"gpu": "3", "uuid": "GPU-0123"}


class Gpu:
    """What the driver says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self.temperature = 61
        self.knows_power = True
        for name, answer in {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetHandleByPciBusId": {BUS_ID: "handle"}.__getitem__,
            "nvmlDeviceGetIndex": lambda _: 3,
            "nvmlDeviceGetUUID": lambda _: "GPU-0123",
            "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=75),
            "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=2 << 30, total=16 << 30),
            "nvmlDeviceGetTemperature": self._read_temperature,
            "nvmlDeviceGetPowerUsage": self._read_power,
        }.items():
            monkeypatch.setattr(pynvml, name, answer)

    def _read_temperature(self, gpu: str, sensor: int) -> int:
        assert (gpu, sensor) == ("handle", pynvml.NVML_TEMPERATURE_GPU)
        if self.error is not None:
            raise self.error
        return self.temperature

    def _read_power(self, _: str) -> int:
        if not self.knows_power:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 72_500


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def values(registry: CollectorRegistry) -> dict[str, float]:
    samples: list[Any] = [sample for metric in registry.collect() for sample in metric.samples]
    assert all(sample.labels == WHICH for sample in samples)
    return {sample.name.removeprefix("lensgate_gpu_"): sample.value for sample in samples}


def test_what_the_driver_says_is_shown_in_base_units(gpu: Gpu) -> None:
    registry = CollectorRegistry()
    metrics = GpuMetrics(BUS_ID, registry)
    assert metrics.find()
    metrics.sample()
    assert values(registry) == {
        "utilization_ratio": 0.75,
        "memory_used_bytes": 2 << 30,
        "memory_total_bytes": 16 << 30,
        "temperature_celsius": 61,
        "power_watts": 72.5,
    }


def test_what_a_gpu_does_not_know_is_left_out(gpu: Gpu) -> None:
    gpu.knows_power = False
    registry = CollectorRegistry()
    metrics = GpuMetrics(BUS_ID, registry)
    assert metrics.find()
    metrics.sample()
    assert "power_watts" not in values(registry)
    assert values(registry)["temperature_celsius"] == 61


def test_a_gpu_that_is_lost_leaves_no_old_values_and_one_line_in_the_log(gpu: Gpu) -> None:
    registry = CollectorRegistry()
    metrics = GpuMetrics(BUS_ID, registry)
    assert metrics.find()
    gpu.error = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    with structlog.testing.capture_logs() as lines:
        metrics.sample()
        metrics.sample()
    assert [line["event"] for line in lines] == ["gpu_metrics_lost"]
    assert all(math.isnan(value) for value in values(registry).values())
    gpu.error, gpu.temperature = None, 40
    metrics.sample()
    assert values(registry)["temperature_celsius"] == 40


def test_without_nvml_there_are_no_gauges_and_the_log_says_why(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    registry = CollectorRegistry()
    with structlog.testing.capture_logs() as lines:
        assert not GpuMetrics(BUS_ID, registry).find()
    assert [(line["event"], line["pci_bus_id"]) for line in lines] == [("gpu_metrics_unavailable", BUS_ID)]
    assert values(registry) == {}


def test_the_cpu_is_on_no_bus() -> None:
    assert pci_bus_id("cpu") is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_real_gpu_is_found_where_cuda_says_it_is() -> None:
    bus_id = pci_bus_id("cuda:0")
    assert bus_id is not None
    registry = CollectorRegistry()
    metrics = GpuMetrics(bus_id, registry)
    assert metrics.find()
    metrics.sample()
    found = {sample.name.removeprefix("lensgate_gpu_"): sample.value for metric in registry.collect() for sample in metric.samples}
    # The driver keeps some of the memory for itself.
    assert found["memory_total_bytes"] == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.1)
    assert 0 < found["memory_used_bytes"] <= found["memory_total_bytes"]
    assert 0 <= found["utilization_ratio"] <= 1
    assert 0 < found["temperature_celsius"] < 120
    assert 0 < found["power_watts"] < 2000
