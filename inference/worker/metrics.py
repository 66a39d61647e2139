"""What one engine measures. It answers no scrape itself: the process that started it lets it share its values with those that do."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inference.types import ModelInfo

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_PICTURES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class EngineMetrics:
    """The metrics of one engine.

    Args:
        engine: its name among the service's.
        registry: only to list the metrics.
    """

    def __init__(self, engine: str, registry: CollectorRegistry | None = None) -> None:
        self._engine = engine
        self._queue_depth = Gauge(
            "lensgate_queue_depth",
            "Pictures that wait in an engine for their batch.",
            ["engine"],
            multiprocess_mode="sum",
            registry=registry,
        ).labels(engine)
        self._predicted_wait = Gauge(
            "lensgate_predicted_wait_seconds",
            "How long a picture behind all that wait now would wait for its batch; clients take turns, so most wait less.",
            ["engine"],
            multiprocess_mode="sum",
            registry=registry,
        ).labels(engine)
        self._forward_duration = Histogram(
            "lensgate_forward_duration_seconds",
            "The forward pass of a batch, copies and top-k included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_size = Histogram("lensgate_batch_size", "Pictures in one forward pass.", buckets=_PICTURES, registry=registry)
        self._forward_failures = Counter("lensgate_forward_failures_total", "Forward passes that the device failed.", registry=registry)
        self._model_info = Gauge(
            "lensgate_model_info",
            "1 for the model that an engine serves.",
            ["engine", "model", "version", "digest", "precision", "device"],
            multiprocess_mode="max",
            registry=registry,
        )

    def queue_seen(self, depth: int, predicted_wait_s: float) -> None:
        """How long the queue is now, in pictures, and how long one more would wait."""
        self._queue_depth.set(depth)
        self._predicted_wait.set(predicted_wait_s)

    def batch_run(self, size: int, seconds: float) -> None:
        """A forward pass is done."""
        self._batch_size.observe(size)
        self._forward_duration.observe(seconds)

    def batch_failed(self) -> None:
        """A forward pass raised."""
        self._forward_failures.inc()

    def model_ready(self, info: ModelInfo) -> None:
        """The engine serves this model from now on."""
        self._model_info.labels(self._engine, info.name, info.version, info.digest, info.precision, info.device).set(1)
