"""What an engine measures of its queue, and what it says of its model."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from prometheus_client import CollectorRegistry

from inference.types import ModelInfo, Preprocessing
from inference.worker.batcher import Batcher, BatchModel
from inference.worker.metrics import EngineMetrics
from inference.worker.queue import Entry, FairQueue

PIXELS = np.zeros((8, 8, 3), np.uint8)


class Model:
    """As much of a model as admitting pictures needs."""

    max_batch = 4
    lanes = 1


def test_depth_and_predicted_wait_follow_every_picture_that_is_admitted() -> None:
    registry = CollectorRegistry()
    metrics = EngineMetrics("engine-0", registry)
    model = cast("BatchModel", Model())
    batcher = Batcher(FairQueue(9), model, deliver=lambda _: None, metrics=metrics, seconds_per_batch=3.0)

    def admit(number: int) -> Any:  # noqa: ANN401 # a refusal or nothing
        return batcher.admit(Entry(number, number, PIXELS, 1, 2**62, "client", lambda _: None))

    seen = []
    for number in range(9):
        assert admit(number) is None
        seen.append(
            tuple(
                registry.get_sample_value(f"lensgate_{name}", {"engine": "engine-0"}) for name in ("queue_depth", "predicted_wait_seconds")
            )
        )
    assert seen == [(1, 0), (2, 0), (3, 0), (4, 3), (5, 3), (6, 3), (7, 3), (8, 6), (9, 6)]
    assert admit(9).kind == "overloaded"
    assert registry.get_sample_value("lensgate_queue_depth", {"engine": "engine-0"}) == 9


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
