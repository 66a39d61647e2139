"""A lane of a GPU: its buckets, its padding and its places, with a stream of the CPU; and the same on a GPU where there is one."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from inference.types import Pixels
from inference.worker.cuda_lane import CudaLane, batch_buckets, bucket_for
from inference.worker.cuda_stream import cuda_streams
from inference.worker.lane import TopClasses
from support.eager_stream import EagerStream

CPU = torch.device("cpu")
SIDE_PX = 4
CLASSES = 6
TOP_K = 3


class Recording(nn.Module):
    """Linear in the pixels; remembers how many rows it was given."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(SIDE_PX * SIDE_PX * 3, CLASSES, generator=generator) / 255, requires_grad=False)
        self.rows: list[int] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(pixels))
        return pixels.flatten(1).float() @ self.weight

    def expected(self, pixels: list[Pixels]) -> TopClasses:
        logits = torch.from_numpy(np.stack(pixels)).flatten(1).float() @ self.weight.cpu()
        probabilities, ids = torch.softmax(logits, dim=1).topk(TOP_K, dim=1)
        return ids.numpy(), probabilities.numpy()


def noise(count: int, seed: int = 0) -> list[Pixels]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, SIDE_PX, SIDE_PX, 3), dtype=np.uint8))


def lane(graph: Recording, max_batch: int) -> CudaLane:
    return CudaLane(graph, EagerStream(CPU), max_batch=max_batch, crop_px=SIDE_PX, top_k=TOP_K)


def assert_answers(found: TopClasses, expected: TopClasses) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("max_batch", "buckets"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (20, (1, 2, 4, 8, 16, 20)), (256, (1, 2, 4, 8, 16, 32, 64, 128, 256))],
)
def test_there_is_a_bucket_for_each_power_of_two_and_for_the_largest_batch(max_batch: int, buckets: tuple[int, ...]) -> None:
    assert batch_buckets(max_batch) == buckets


def test_a_batch_goes_into_the_smallest_bucket_that_holds_it() -> None:
    buckets = batch_buckets(12)
    assert [bucket_for(buckets, count) for count in range(1, 13)] == [1, 2, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12]


def test_all_buckets_are_warm_before_any_is_captured_the_largest_first_and_no_other_size_ever_runs() -> None:
    graph = Recording()
    one = lane(graph, 5)
    assert graph.rows == [5, 4, 2, 1] * 2
    for count in range(1, 6):
        one.infer(noise(count), alone=False)
    assert graph.rows[8:] == [1, 2, 4, 4, 5]


@pytest.mark.parametrize(("count", "turns"), [(1, 0), (16, 0), (17, 1), (32, 1), (33, 1)])
def test_only_a_batch_that_fills_the_device_waits_for_its_turn(count: int, turns: int) -> None:
    stream = EagerStream(CPU)
    one = CudaLane(Recording(), stream, max_batch=64, crop_px=SIDE_PX, top_k=TOP_K)
    one.infer(noise(count), alone=False)
    assert stream.turns == turns


@pytest.mark.parametrize("count", range(1, 9))
def test_a_batch_of_any_size_is_answered_row_by_row(count: int) -> None:
    graph = Recording()
    one = lane(graph, 8)
    one.infer(noise(8, seed=1), alone=False)  # what it leaves behind fills the rows that are not used
    pixels = noise(count, seed=2)
    ids, probabilities = one.infer(pixels, alone=False)
    assert ids.shape == probabilities.shape == (count, TOP_K)
    assert (str(ids.dtype), str(probabilities.dtype)) == ("int64", "float32")
    assert_answers((ids, probabilities), graph.expected(pixels))


def test_answers_stay_as_they_were_when_the_next_batch_runs() -> None:
    graph = Recording()
    one = lane(graph, 4)
    first, logits = one.infer(noise(3, seed=1), alone=True), one.logits(noise(3, seed=1))
    before = logits.copy()
    one.infer(noise(3, seed=2), alone=True)
    assert_answers(first, graph.expected(noise(3, seed=1)))
    np.testing.assert_array_equal(logits, before)


def test_logits_are_those_of_all_classes_in_their_order() -> None:
    graph = Recording()
    pixels = noise(3)
    logits = lane(graph, 4).logits(pixels)
    np.testing.assert_allclose(logits, np.stack(pixels).reshape(3, -1).astype(np.float32) @ graph.weight.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [0, 5])
def test_too_few_or_too_many_pictures_are_refused_and_nothing_runs(count: int) -> None:
    graph = Recording()
    one = lane(graph, 4)
    captured = len(graph.rows)
    with pytest.raises(ValueError, match="1 to 4 pictures"):
        one.infer(noise(count), alone=True)
    assert len(graph.rows) == captured


@pytest.mark.gpu
def test_on_a_gpu_two_lanes_at_once_answer_what_each_was_asked(cuda: torch.device) -> None:
    graph = Recording().to(cuda)
    lanes = [CudaLane(graph, stream, max_batch=48, crop_px=SIDE_PX, top_k=TOP_K) for stream in cuda_streams(cuda, 2)]
    failures: list[BaseException] = []

    def serve(index: int) -> None:
        try:
            for turn in range(300):
                pixels = noise(turn % 48 + 1, seed=turn * 2 + index)
                assert_answers(lanes[index].infer(pixels, alone=False), graph.expected(pixels))
        except BaseException as error:  # noqa: BLE001  raised below, on the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=serve, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


@pytest.mark.gpu
@pytest.mark.parametrize("in_turn", [True, False])
def test_on_a_gpu_work_in_turn_begins_when_the_other_streams_has_ended(in_turn: bool, cuda: torch.device) -> None:
    ends: list[torch.cuda.Event] = []
    begins: list[torch.cuda.Event] = []
    for stream in cuda_streams(cuda, 2):
        with stream.current(), stream.in_turn() if in_turn else nullcontext():
            begins.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]  # untyped in torch
            begins[-1].record()
            torch.cuda._sleep(100_000_000)  # type: ignore[no-untyped-call]  # cycles: about a twentieth of a second
            ends.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            ends[-1].record()
    torch.cuda.synchronize(cuda)
    assert (ends[0].elapsed_time(begins[1]) >= 0) == in_turn


@pytest.mark.gpu
def test_on_a_gpu_a_lane_allocates_nothing_while_it_serves(cuda: torch.device) -> None:
    one = CudaLane(Recording().to(cuda), *cuda_streams(cuda, 1), max_batch=8, crop_px=SIDE_PX, top_k=TOP_K)
    one.infer(noise(8), alone=True)
    before = torch.cuda.memory_stats(cuda)["num_device_alloc"], torch.cuda.memory_allocated(cuda)
    for count in range(1, 9):
        one.infer(noise(count), alone=True)
    assert (torch.cuda.memory_stats(cuda)["num_device_alloc"], torch.cuda.memory_allocated(cuda)) == before


@pytest.mark.gpu
def test_on_a_gpu_waiting_for_an_answer_lets_other_threads_run(cuda: torch.device) -> None:
    class Slow(Recording):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]  # cycles: about a tenth of a second
            return super().forward(pixels)

    one = CudaLane(Slow().to(cuda), *cuda_streams(cuda, 1), max_batch=1, crop_px=SIDE_PX, top_k=TOP_K)
    done = threading.Event()
    steps = 0

    def serve() -> None:
        one.infer(noise(1), alone=True)
        done.set()

    thread = threading.Thread(target=serve)
    thread.start()
    while not done.wait(0.001):
        steps += 1
    thread.join()
    assert steps > 5
