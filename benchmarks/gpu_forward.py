"""The network alone as CUDA graphs: how fast the GPU can run it at all. Prints JSON.

    python -m benchmarks.gpu_forward weights.pth --batches 1,8,64 --seconds 0.3

From uint8 pictures on the GPU to logits, by Lensgate's own graph, with and without fused convolutions; nothing is copied. `two streams` is
the same with two graphs at once, as two lanes have it while neither waits.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from inference.settings import InferenceSettings
from inference.worker.cuda_stream import CudaStream
from inference.worker.device import dtype_of, set_up_gpu
from inference.worker.fused_convolutions import fuse_convolutions
from inference.worker.pixel_graph import PixelGraph
from inference.worker.weights import load_weights

_DEVICE = torch.device("cuda:0")
_CROP_PX = 224


def main() -> None:
    """Measure every batch size in turn, fused and not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--batches", type=lambda text: [int(number) for number in text.split(",")], default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=0.3)
    options = parser.parse_args()
    set_up_gpu(_DEVICE, options.precision, 1.0)
    settings = InferenceSettings(model=options.model, weights=str(options.weights))
    graph: nn.Module = PixelGraph(load_weights(settings), dtype_of(options.precision)).to(_DEVICE)
    trial = [_pictures(count) for count in (1, 8)]
    fused = fuse_convolutions(graph, trial) if options.precision != "fp32" else None
    rows = []
    for batch in options.batches:
        row: dict[str, float] = {"batch": batch}
        for name, network in (("unfused", graph), ("fused", fused)):
            if network is not None:
                row[f"{name}_per_s"], row[f"{name}_two_streams_per_s"] = _rates(network, batch, options.seconds)
        rows.append(row)
    sys.stdout.write(json.dumps({"device": torch.cuda.get_device_name(_DEVICE), "precision": options.precision, "rows": rows}) + "\n")


def _pictures(count: int) -> torch.Tensor:
    # Random: zeros run faster than pictures do.
    return torch.randint(0, 256, (count, _CROP_PX, _CROP_PX, 3), dtype=torch.uint8, device=_DEVICE)


def _rates(network: nn.Module, batch: int, seconds: float) -> tuple[float, float]:
    """Images a second: by one graph, and by two on streams of their own."""
    streams = [CudaStream(_DEVICE) for _ in range(2)]
    with torch.inference_mode():
        inputs = [_pictures(batch) for _ in streams]
        captured = [stream.capture(partial(network, pictures)) for stream, pictures in zip(streams, inputs, strict=True)]
    replays = [replay for replay, _ in captured]
    single_s = _seconds_per_round(streams[:1], replays[:1], seconds)
    both_s = _seconds_per_round(streams, replays, seconds)
    return batch / single_s, 2 * batch / both_s


def _seconds_per_round(streams: list[CudaStream], replays: list[Callable[[], None]], seconds: float) -> float:
    def run(rounds: int) -> float:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # untyped in torch
        torch.cuda.synchronize()
        with streams[0].current():
            began.record()
        for _ in range(rounds):
            for stream, replay in zip(streams, replays, strict=True):
                with stream.current():
                    replay()
        for stream in streams[1:]:
            stream.wait()
        with streams[0].current():
            ended.record()
        torch.cuda.synchronize()
        return float(began.elapsed_time(ended)) / 1e3 / rounds

    run(5)
    return run(max(5, int(seconds / run(10))))


if __name__ == "__main__":
    main()
