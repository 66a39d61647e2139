"""What NVIDIA's management library (NVML) says of the GPU that an engine runs on, a few times a minute, on a thread of its own."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import structlog
from prometheus_client import CollectorRegistry, Gauge

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class _Reading(NamedTuple):
    name: str
    help: str
    read: Callable[[Any, Any], float]
    """Given the library and its handle of the GPU."""


_READINGS: Final = (
    _Reading(
        "lensgate_gpu_utilization_ratio",
        "The share of the time, 0 to 1, in which the GPU ran something, whoever started it.",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    _Reading(
        "lensgate_gpu_memory_used_bytes", "GPU memory in use, whoever uses it.", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used
    ),
    _Reading("lensgate_gpu_memory_total_bytes", "GPU memory there is.", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
    _Reading(
        "lensgate_gpu_temperature_celsius",
        "The temperature of the GPU's die.",
        lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    ),
    _Reading("lensgate_gpu_power_watts", "The power that the GPU draws.", lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
)


class GpuMetrics:
    """The gauges of one GPU. A GPU or a driver that does not know one of them leaves that one out.

    Args:
        pci_bus_id: such as `00000000:3B:00.0`: CUDA's own numbers are counted within CUDA_VISIBLE_DEVICES, and NVML knows nothing of that.
        every_s: how often they are read.
        registry: only to list the metrics.
    """

    def __init__(self, pci_bus_id: str, *, every_s: float = 5.0, registry: CollectorRegistry | None = None) -> None:
        self._pci_bus_id = pci_bus_id
        self._every_s = every_s
        # Two engines on one GPU read the same: the sum of both would be wrong.
        self._gauges = [
            (reading, Gauge(reading.name, reading.help, ["gpu", "uuid"], multiprocess_mode="max", registry=registry))
            for reading in _READINGS
        ]
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin to sample, on a daemon thread. Without NVML the log says so once, and there are no gauges."""
        threading.Thread(target=self._run, name="gpu metrics", daemon=True).start()

    def stop(self) -> None:
        """Sample no more."""
        self._stop.set()

    def _run(self) -> None:
        import pynvml

        try:
            pynvml.nvmlInit()
            gpu = pynvml.nvmlDeviceGetHandleByPciBusId(self._pci_bus_id)
            labels = (pynvml.nvmlDeviceGetIndex(gpu), pynvml.nvmlDeviceGetUUID(gpu))
            known = [(reading, gauge.labels(*labels)) for reading, gauge in self._gauges if _is_known(pynvml, gpu, reading)]
        except pynvml.NVMLError as error:
            _log.warning("gpu_metrics_unavailable", pci_bus_id=self._pci_bus_id, reason=str(error))
            return
        lost = False
        while not self._stop.is_set():
            try:
                for reading, gauge in known:
                    gauge.set(reading.read(pynvml, gpu))
                lost = False
            except pynvml.NVMLError as error:
                # A GPU that has fallen off the bus, for one: its last temperature must not stand there for good.
                for _, gauge in known:
                    gauge.set(math.nan)
                if not lost:
                    _log.error("gpu_metrics_lost", pci_bus_id=self._pci_bus_id, reason=str(error))
                lost = True
            self._stop.wait(self._every_s)


def _is_known(nvml: Any, gpu: Any, reading: _Reading) -> bool:  # noqa: ANN401  the library has no types
    try:
        reading.read(nvml, gpu)
    except nvml.NVMLError:
        return False
    return True
