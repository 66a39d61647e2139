"""A machine with two GPUs: two engines, as real processes. Here they find no driver and run on the CPU; all else is as it would be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

import support
from support.held import ENGINE
from support.service import Service

_TWO_GPUS = Path(str(support.__path__[0])) / "two_gpus"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU there is would be taken by both engines")
def test_each_gpu_has_an_engine_and_when_one_dies_the_other_goes_on(
    start_service: Callable[..., Service], photographs_by_name: Mapping[str, bytes]
) -> None:
    service = start_service({"PYTHONPATH": str(_TWO_GPUS), "CUDA_VISIBLE_DEVICES": "GPU-1,0"})
    service.wait_ready()
    ready_lines = [service.wait_for("engine_ready")]
    service.wait_for("engine_ready", after=service.log.index(ready_lines[0]) + 1)
    assert [line["child"] for line in service.log if line["event"] == "child_started"][:2] == ["engine-0", "engine-1"]
    engines = service.children(ENGINE)
    assert len(engines) == 2
    token = service.token(service.create_client("several", "predict"))
    models = service.get("/models", token).json()["models"]
    assert [model["device"] for model in models] == ["cpu", "cpu"]

    dead = int(next(line["child_pid"] for line in service.log if line["event"] == "child_started" and line["child"] == "engine-0"))
    after = len(service.log)
    next(engine for engine in engines if engine.pid == dead).kill()
    service.wait_for("engine_connection_lost", after=after)
    # The other one alone is there: the one that died takes seconds to come back.
    for _ in range(3):
        assert service.get("/readyz").status_code == 200
        assert service.predict(photographs_by_name["coffee.png"], token).json()["label"] == "espresso"
    service.wait_for("child_died", after=after, child="engine-0")
    service.wait_for("engine_ready", after=after)
    assert len(service.children(ENGINE)) == 2
