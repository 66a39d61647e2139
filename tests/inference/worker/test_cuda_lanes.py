"""How the lanes of a GPU come about: fused or not, as large as memory allows, and compared with the network before they serve."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  its usual name

from inference.errors import ModelLoadError
from inference.worker.cuda_lane import CudaLane
from inference.worker.cuda_lanes import make_cuda_lanes
from inference.worker.fused_convolutions import FusedOperations
from support.eager_stream import eager_streams

CPU = torch.device("cpu")
SIDE_PX = 8


@torch.fx.wrap
def _take(pixels: torch.Tensor, room: int) -> torch.Tensor:
    if len(pixels) > room:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return pixels


class Network(nn.Module):
    """Has memory for batches of up to `room`."""

    def __init__(self, room: int = 1000) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self._room = room
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        planes = self.conv(_take(pixels, self._room).permute(0, 3, 1, 2).float() / 255)
        logits: torch.Tensor = self.head(F.relu(planes).mean((2, 3)))
        return logits


class FusedOnCpu:
    """The fused operation; it can go wrong after some calls, of which those in the trial come first."""

    def __init__(self, *, wrong_from: float = math.inf, fails_from: float = math.inf, error: RuntimeError | None = None) -> None:
        self.calls = 0
        self._wrong_from = wrong_from
        self._fails_from, self._error = fails_from, error

    def operations(self) -> FusedOperations:
        def relu(source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *geometry: Any) -> torch.Tensor:  # noqa: ANN401
            self.calls += 1
            if self._error is not None and self.calls > self._fails_from:
                raise self._error
            return F.conv2d(source, weight, bias, *geometry).relu() * (2 if self.calls > self._wrong_from else 1)

        return FusedOperations(relu, relu)


def make(network: nn.Module, relu: FusedOnCpu, *, fuse: bool = True, max_batch: int = 4) -> tuple[list[CudaLane], int]:
    lanes, fitting = make_cuda_lanes(
        network, eager_streams, device=CPU, fuse=fuse, max_batch=max_batch, crop_px=SIDE_PX, top_k=3, operations=relu.operations()
    )
    return list(lanes), fitting


def noise(count: int) -> list[Any]:
    return list(np.random.default_rng(3).integers(0, 256, (count, SIDE_PX, SIDE_PX, 3), dtype=np.uint8))


def assert_right(lane: CudaLane, network: nn.Module, count: int = 3) -> None:
    expected = network(torch.from_numpy(np.stack(noise(count)))).numpy()
    np.testing.assert_allclose(lane.logits(noise(count)), expected, rtol=1e-4, atol=1e-5)


def test_there_are_two_lanes_that_run_the_fused_network() -> None:
    relu = FusedOnCpu()
    lanes, fitting = make(Network(), relu)
    before = relu.calls
    assert (len(lanes), fitting) == (2, 4)
    for lane in lanes:
        assert_right(lane, Network())
    assert relu.calls == before + 2


def test_fp32_is_not_fused() -> None:
    relu = FusedOnCpu()
    lanes, _ = make(Network(), relu, fuse=False)
    assert_right(lanes[0], Network())
    assert relu.calls == 0


def test_a_fused_network_that_goes_wrong_after_its_trial_is_not_used() -> None:
    # Twice for each of two batches in the trial; then the capture of four.
    relu = FusedOnCpu(wrong_from=4)
    with structlog.testing.capture_logs() as lines:
        lanes, _ = make(Network(), relu)
    assert [(line["event"], line.get("fused")) for line in lines][1:] == [("lanes_differ", True), ("graphs_captured", False)]
    before = relu.calls
    assert_right(lanes[0], Network())
    assert relu.calls == before


@pytest.mark.parametrize(
    ("kind", "reason"), [(RuntimeError, "FIND was unable to find an engine"), (torch.OutOfMemoryError, "CUDA out of memory.")]
)
def test_a_fused_network_that_fails_after_its_trial_is_not_used_and_takes_no_size_away(kind: type[RuntimeError], reason: str) -> None:
    # Twice for each of two batches in the trial; then the warm-up of sixteen.
    relu = FusedOnCpu(fails_from=4, error=kind(reason))
    with structlog.testing.capture_logs() as lines:
        lanes, fitting = make(Network(), relu, max_batch=16)
    assert fitting == 16
    assert [line["reason"] for line in lines if line["event"] == "fused_lanes_failed"] == [reason]
    assert_right(lanes[0], Network(), 16)


def test_captures_that_compute_other_numbers_than_the_network_stop_the_start() -> None:
    class Drifting(Network):
        calls = 0

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(pixels) * self.calls

    with pytest.raises(ModelLoadError, match="compute other numbers"):
        make(Drifting(), FusedOnCpu(), fuse=False)


def test_weights_that_are_broken_are_left_to_the_warm_up_which_says_so() -> None:
    network = Network()
    network.head.bias[0] = math.nan
    lanes, _ = make(network, FusedOnCpu())
    assert np.isnan(lanes[0].logits(noise(1))).any()


@pytest.mark.parametrize(("room", "fitting"), [(4, 4), (3, 2), (1, 1)])
@pytest.mark.parametrize("fuse", [True, False])
def test_where_memory_is_short_the_lanes_take_fewer_pictures(room: int, fitting: int, fuse: bool) -> None:
    with structlog.testing.capture_logs() as lines:
        lanes, found = make(Network(room), FusedOnCpu(), fuse=fuse, max_batch=4)
    assert found == fitting
    assert [line["max_batch"] for line in lines if line["event"] == "max_batch_lowered"] == [size for size in (2, 1) if fitting <= size < 4]
    for lane in lanes:
        assert_right(lane, Network(), fitting)
        with pytest.raises(ValueError, match=f"1 to {fitting} pictures"):
            lane.infer(noise(fitting + 1), alone=True)


def test_memory_that_is_short_is_known_by_cudnns_complaint_as_well() -> None:
    class Complaining(Network):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            if len(pixels) > 2:
                raise RuntimeError("GET was unable to find an engine to execute this computation")
            return super().forward(pixels)

    _, fitting = make(Complaining(), FusedOnCpu(), fuse=False)
    assert fitting == 2


def test_a_network_for_which_there_is_no_memory_at_all_does_not_start() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        make(Network(0), FusedOnCpu(), fuse=False)


_LITTLE_MEMORY = """
import torch
from torch import nn
from inference.worker.cuda_lanes import make_cuda_lanes
from inference.worker.cuda_stream import cuda_streams

class Greedy(nn.Module):
    def forward(self, pixels):
        planes = pixels.float()
        held = [planes.repeat(1, 8, 8, 1) for _ in range(32)]
        return sum(held).mean((1, 2))

device = torch.device("cuda:0")
total = torch.cuda.get_device_properties(device).total_memory
torch.cuda.set_per_process_memory_fraction(2**30 / total, device)
lanes, fitting = make_cuda_lanes(Greedy(), cuda_streams, device=device, fuse=False, max_batch=256, crop_px=64, top_k=2)
print(fitting, lanes[0].infer([__import__("numpy").zeros((64, 64, 3), "uint8")] * fitting, alone=True)[1].shape)
"""


@pytest.mark.gpu
def test_on_a_gpu_with_a_share_of_its_memory_the_lanes_take_fewer_pictures(cuda: torch.device) -> None:
    # In a process of its own: the share holds for all of one.
    run = subprocess.run([sys.executable, "-c", _LITTLE_MEMORY], capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stderr
    fitting = int(run.stdout.splitlines()[-1].split()[0])
    assert 1 <= fitting < 256
    assert f"({fitting}, 2)" in run.stdout
    assert "max_batch_lowered" in run.stdout
