"""What an engine measures of its queue, and what it says of its model."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from inference.types import ModelInfo, Preprocessing
from inference.worker.metrics import EngineMetrics


def test_the_queue_is_measured_as_it_was_seen_last() -> None:
    registry = CollectorRegistry()
    metrics = EngineMetrics("engine-0", registry)
    for depth, wait_s in ((9, 6.0), (4, 3.0)):
        metrics.queue_seen(depth, wait_s)
        for name, expected in (("queue_depth", depth), ("predicted_wait_seconds", wait_s)):
            assert registry.get_sample_value(f"lensgate_{name}", {"engine": "engine-0"}) == expected


def test_a_forward_pass_is_measured_whole_and_a_failure_is_counted_apart() -> None:
    registry = CollectorRegistry()
    metrics = EngineMetrics("engine-0", registry)
    metrics.batch_run(3, 0.02)
    metrics.batch_run(8, 0.07)
    metrics.batch_failed()
    value = registry.get_sample_value
    assert (value("lensgate_batch_size_count"), value("lensgate_batch_size_sum")) == (2, 11)
    assert (value("lensgate_batch_size_bucket", {"le": "2.0"}), value("lensgate_batch_size_bucket", {"le": "4.0"})) == (0, 1)
    assert (value("lensgate_forward_duration_seconds_count"), value("lensgate_forward_duration_seconds_bucket", {"le": "0.025"})) == (2, 1)
    assert value("lensgate_forward_failures_total") == 1


def test_the_model_is_described_by_its_labels() -> None:
    registry = CollectorRegistry()
    info = ModelInfo(
        name="resnet50",
        version="IMAGENET1K_V2",
        digest="sha256:00",
        precision="bf16",
        device="cuda:0",
        preprocessing=Preprocessing(resize_px=232, crop_px=224, interpolation="bilinear"),
        labels=("cat", "dog"),
    )
    EngineMetrics("engine-0", registry).model_ready(info)
    labels = {"engine": "engine-0", "model": "resnet50", "version": "IMAGENET1K_V2", "digest": "sha256:00"}
    assert registry.get_sample_value("lensgate_model_info", labels | {"precision": "bf16", "device": "cuda:0"}) == 1
