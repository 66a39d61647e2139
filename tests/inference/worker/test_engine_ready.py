from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from inference.ipc import Failure
from inference.settings import InferenceSettings
from inference.types import EngineStatus, ModelInfo, Preprocessing
from inference.worker import preparation, process
from inference.worker.metrics import EngineMetrics
from inference.worker.queue import Entry, FairQueue
from inference.worker.server import EngineServer

INFO = ModelInfo(
    name="tiny",
    version="1",
    digest="sha256:0",
    precision="fp32",
    device="cpu",
    preprocessing=Preprocessing(resize_px=8, crop_px=8, interpolation="bilinear"),
    labels=("a", "b"),
)


def test_the_seconds_until_an_engine_is_ready_begin_before_the_import_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(info=INFO, max_batch=1, lanes=1, compiled=False, seconds_per_full_batch=lambda: 0.1)
    monkeypatch.setattr(preparation, "prepare_model", lambda *_, **__: model)
    monkeypatch.setattr(process, "keep_what_exists", lambda: None)  # in the tests' own process

    class Server:
        admit: Any = None

        def publish(self, status: EngineStatus) -> None:
            if status.phase == "loading":  # published right before the import, whose seconds this stands for
                time.sleep(0.2)

        def deliver(self, answers: list[tuple[Entry, Failure]]) -> None: ...

    with capture_logs() as logged:
        process._load([InferenceSettings()], cast("EngineServer", Server()), FairQueue(1), 1.0, EngineMetrics("engine-9"), None)
    (ready,) = (line for line in logged if line["event"] == "engine_ready")
    assert ready["seconds"] >= 0.2
