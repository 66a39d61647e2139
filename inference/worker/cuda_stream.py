"""One stream of a GPU, and what is captured on it to be replayed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol, TypeVar

import torch

_WARM_UP_PASSES: Final = 3
"""What the libraries choose and allocate at first use must be done before a capture; three as in PyTorch's notes on CUDA graphs."""

_Outputs = TypeVar("_Outputs")


class GraphStream(Protocol):
    """Work in order, beside the work of other streams; what was captured runs again on the same memory."""

    device: torch.device

    def current(self) -> AbstractContextManager[object]:
        """Within it, what this thread asks of the device is work of this stream."""
        ...

    def in_turn(self) -> AbstractContextManager[object]:
        """What is asked for within it begins on the device when all is done that any stream asked for in turn before. Nobody waits here."""
        ...

    def warm_up(self, work: Callable[[], object]) -> None:
        """Run `work`, so that whatever the libraries choose and allocate at first use is chosen and allocated before it is captured."""
        ...

    def capture(self, work: Callable[[], _Outputs]) -> tuple[Callable[[], None], _Outputs]:
        """Run `work`; return what runs it again on what its inputs' memory holds then, and the outputs, whose memory is written anew."""
        ...

    def wait(self) -> None:
        """Wait until all work so far is done, without holding Python's lock or a core."""
        ...


class _Turn:
    """Whose turn the device has; its streams share it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # untyped in torch
        """The end of what was asked for in turn last; before there was anything, waiting for it is no wait."""


class CudaStream:
    """A stream whose captures share their memory: they are replayed one at a time, and nothing but their outputs outlives a replay.

    Captures are for one thread, and while no other thread uses the device.
    """

    def __init__(self, device: torch.device, turn: _Turn) -> None:
        self.device = device
        self._turn = turn
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # untyped in torch
            self._pool = torch.cuda.graph_pool_handle()
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `GraphStream.current`."""
        # The device as well: leaving a stream of another one than the current sets that one's, and makes a context in its memory.
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """See `GraphStream.in_turn`."""
        with self._turn.lock:
            self._stream.wait_event(self._turn.done)
            yield
            self._turn.done.record(self._stream)

    def warm_up(self, work: Callable[[], object]) -> None:
        """See `GraphStream.warm_up`."""
        with torch.cuda.device(self.device):
            # The weights and the input buffer were written on another stream.
            self._stream.wait_stream(torch.cuda.current_stream())
        with self.current():
            for _ in range(_WARM_UP_PASSES):
                work()
        self._stream.synchronize()

    def capture(self, work: Callable[[], _Outputs]) -> tuple[Callable[[], None], _Outputs]:
        """See `GraphStream.capture`."""
        # A failed capture leaves its stream current: that ends with this block.
        with self.current():
            graph = torch.cuda.CUDAGraph()
            # Other threads of this process may talk to the driver meanwhile; that is no reason for this capture to fail.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                outputs = work()
        return graph.replay, outputs

    def wait(self) -> None:
        """See `GraphStream.wait`."""
        self._done.record(self._stream)
        self._done.synchronize()


def cuda_streams(device: torch.device, count: int) -> Sequence[CudaStream]:
    """So many streams of one GPU, which take turns with one another."""
    turn = _Turn()
    return [CudaStream(device, turn) for _ in range(count)]
