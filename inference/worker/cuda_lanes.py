"""The lanes of one GPU: as large as its memory allows, with fused convolutions where they are sound, and compared before they serve."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import structlog
import torch
from torch import nn

from inference.errors import ModelLoadError
from inference.worker.cuda_lane import CudaLane, batch_buckets
from inference.worker.cuda_stream import GraphStream
from inference.worker.fused_convolutions import CUDNN, FusedOperations, fuse_convolutions, nearly_equal
from inference.worker.out_of_memory import largest_that_fits, may_lack_memory, ran_out_of_memory

_LANES: Final = 2
"""While one waits for its pixels or its answers to be copied, the other computes."""
_TRIAL_BATCH: Final = 8
_TOLERANCE: Final = 0.05
"""By how much of their norm logits may differ: in bf16, through some fifty layers, each of another algorithm."""

_log: Final = structlog.get_logger()


def make_cuda_lanes(
    graph: nn.Module,
    new_streams: Callable[[torch.device, int], Sequence[GraphStream]],
    *,
    device: torch.device,
    fuse: bool,
    max_batch: int,
    crop_px: int,
    top_k: int,
    operations: FusedOperations = CUDNN,
) -> tuple[Sequence[CudaLane], int]:
    """Make the lanes of a GPU.

    Args:
        graph: `[N,H,W,3]` uint8 to `[N,classes]` float32 logits, on that GPU.
        new_streams: makes so many streams of a GPU.
        device: the GPU.
        fuse: try fused convolutions.
        max_batch: the most pictures at once.
        crop_px: their side.
        top_k: how many classes of each are returned.
        operations: what convolutions are fused into.

    Returns:
        The lanes, and the most pictures that they take at once: `max_batch`, or fewer where memory does not suffice.

    Raises:
        ModelLoadError: what was captured computes other numbers than the network.
        RuntimeError: torch's, when memory does not suffice for a single picture, or the network does not run.
    """
    noise = torch.randint(0, 256, (1, crop_px, crop_px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = graph(noise.to(device)).cpu()

    def make(size: int, *, fused: bool) -> list[CudaLane]:
        network: nn.Module | None = None
        if fused:
            trial = [noise.expand(count, -1, -1, -1).contiguous().to(device) for count in (1, min(_TRIAL_BATCH, size))]
            network = fuse_convolutions(graph, trial, operations)
        return [CudaLane(network or graph, stream, max_batch=size, crop_px=crop_px, top_k=top_k) for stream in new_streams(device, _LANES)]

    for fused in (True, False) if fuse else (False,):
        began_s = time.monotonic()
        try:
            lanes, fitting = largest_that_fits(max_batch, partial(make, fused=fused), ran_out_of_memory if fused else may_lack_memory)
        except RuntimeError as error:
            if not fused:
                raise
            # The trial knew its own batch sizes only.
            _log.warning("fused_lanes_failed", reason=str(error).partition("\n")[0], effect="not used")
            continue
        if _agree(lanes, fitting, noise, expected):
            _log.info("graphs_captured", fused=fused, max_batch=fitting, seconds=round(time.monotonic() - began_s, 1))
            return lanes, fitting
        _log.error("lanes_differ", fused=fused, effect="not used")
        del lanes  # its memory is needed for the next ones
    raise ModelLoadError(f"The CUDA graphs on {device} compute other numbers than the network that they were captured from.")


def _agree(lanes: Sequence[CudaLane], max_batch: int, picture: torch.Tensor, expected: torch.Tensor) -> bool:
    """Run every captured pass of every lane, and compare each row."""
    if not expected.isfinite().all():
        return True  # such weights are refused at warm-up, with the reason
    pixels = picture[0].numpy()
    return all(
        nearly_equal(torch.from_numpy(lane.logits([pixels] * size)), expected.expand(size, -1), _TOLERANCE)
        for lane in lanes
        for size in batch_buckets(max_batch)
    )
