"""One stream of a GPU, and what is captured on it to be replayed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
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

    def capture(self, work: Callable[[], _Outputs]) -> tuple[Callable[[], None], _Outputs]:
        """Run `work`; return what runs it again on what its inputs' memory holds then, and the outputs, whose memory is written anew."""
        ...

    def wait(self) -> None:
        """Wait until all work so far is done, without holding Python's lock or a core."""
        ...


class CudaStream:
    """A stream whose captures share their memory: they are replayed one at a time, and nothing but their outputs outlives a replay.

    Captures are for one thread, and while no other thread uses the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # untyped in torch
            self._pool = torch.cuda.graph_pool_handle()
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def current(self) -> AbstractContextManager[object]:
        """See `GraphStream.current`."""
        return torch.cuda.stream(self._stream)

    def capture(self, work: Callable[[], _Outputs]) -> tuple[Callable[[], None], _Outputs]:
        """See `GraphStream.capture`."""
        # `torch.cuda.graph` waits for the current device, and a failed capture leaves its stream current: both end with this block.
        with torch.cuda.device(self.device):
            # The weights and the input buffer were written on another stream.
            self._stream.wait_stream(torch.cuda.current_stream())
            with self.current():
                for _ in range(_WARM_UP_PASSES):
                    work()
                self._stream.synchronize()
                graph = torch.cuda.CUDAGraph()
                # Other threads of this process may talk to the driver meanwhile; that is no reason for this capture to fail.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    outputs = work()
        return graph.replay, outputs

    def wait(self) -> None:
        """See `GraphStream.wait`."""
        self._done.record(self._stream)
        self._done.synchronize()
