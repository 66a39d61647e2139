from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import structlog
import torch

from inference.types import Pixels
from inference.worker.lane import TopClasses
from inference.worker.out_of_memory import largest_that_fits, ran_out_of_memory, run_in_halves

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def device_of(room: int) -> Callable[[int], str]:
    """Builds for batches of up to `room`."""

    def build(size: int) -> str:
        if size > room:
            raise OUT_OF_MEMORY
        return f"lanes for {size}"

    return build


def pictures(count: int) -> list[Pixels]:
    return [np.full((1, 1, 3), number, np.uint8) for number in range(count)]


class Device:
    """Answers with the number in each picture, of as many at once as it has room for."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sizes: list[int] = []

    def run(self, pixels: Sequence[Pixels]) -> TopClasses:
        self.sizes.append(len(pixels))
        if len(pixels) > self.room:
            raise OUT_OF_MEMORY
        numbers = np.array([[int(picture[0, 0, 0])] for picture in pixels])
        return numbers, numbers.astype(np.float32)


@pytest.mark.parametrize(("room", "fitting"), [(32, 32), (31, 16), (5, 4), (1, 1)])
def test_the_largest_batch_is_halved_until_it_fits(room: int, fitting: int) -> None:
    with structlog.testing.capture_logs() as lines:
        assert largest_that_fits(32, device_of(room)) == (f"lanes for {fitting}", fitting)
    assert [line["max_batch"] for line in lines if line["event"] == "max_batch_lowered"] == [
        size for size in (16, 8, 4, 2, 1) if size >= fitting and fitting < 32
    ]


def test_a_device_without_room_for_one_picture_cannot_be_used() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        largest_that_fits(32, device_of(0))


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    tried: list[int] = []

    def build(size: int) -> None:
        tried.append(size)
        raise RuntimeError("no kernel image is available")

    with pytest.raises(RuntimeError, match="no kernel image"):
        largest_that_fits(8, build)
    assert tried == [8]


def test_a_capture_that_ended_badly_for_want_of_memory_is_recognised() -> None:
    def capture() -> None:
        try:
            raise OUT_OF_MEMORY
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    with pytest.raises(RuntimeError, match="previous error") as failed:
        capture()
    assert ran_out_of_memory(failed.value)
    assert ran_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not ran_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not ran_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(("room", "sizes"), [(7, [7]), (4, [7, 3, 4]), (2, [7, 3, 1, 2, 4, 2, 2])])
def test_a_batch_for_which_memory_is_short_runs_in_parts_and_every_row_is_in_its_place(room: int, sizes: list[int]) -> None:
    device = Device(room)
    ids, probabilities = run_in_halves(device.run, pictures(7))
    assert ids[:, 0].tolist() == probabilities[:, 0].tolist() == list(range(7))
    assert device.sizes == sizes


def test_a_single_picture_that_does_not_fit_fails() -> None:
    device = Device(0)
    with pytest.raises(torch.OutOfMemoryError):
        run_in_halves(device.run, pictures(4))
    assert device.sizes == [4, 2, 1]


def test_a_broken_device_is_not_asked_again() -> None:
    asked: list[int] = []

    def run(pixels: Sequence[Pixels]) -> TopClasses:
        asked.append(len(pixels))
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_in_halves(run, pictures(4))
    assert asked == [4]
