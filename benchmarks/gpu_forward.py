"""The network alone as CUDA graphs: how fast the GPU can run it at all. Prints a line of JSON for the device, and one for each batch size.

    python -m benchmarks.gpu_forward weights.pth --batches 1,8,64 --seconds 0.3

From uint8 pictures on the GPU to logits, by Lensgate's own graph, with and without fused convolutions; nothing is copied. `two streams` is
the same with two graphs at once, as two lanes have it while neither waits.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inference.settings import InferenceSettings
from inference.worker.cuda_stream import CudaStream, cuda_streams
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
    parser.add_argument("--no-search", dest="search", action="store_false", help="without cuDNN's search for algorithms")
    options = parser.parse_args()
    set_up_gpu(_DEVICE, options.precision, 1.0)
    torch.backends.cudnn.benchmark = options.search
    settings = InferenceSettings(model=options.model, weights=str(options.weights))
    graph: nn.Module = PixelGraph(load_weights(settings), dtype_of(options.precision)).to(_DEVICE)
    trial = [_pictures(count) for count in (1, 8)]
    fused = fuse_convolutions(graph, trial) if options.precision != "fp32" else None
    _tell({"device": torch.cuda.get_device_name(_DEVICE), "precision": options.precision, "search": options.search})
    for batch in options.batches:
        row: dict[str, Any] = {"batch": batch}
        for name, network in (("unfused", graph), ("fused", fused)):
            if network is None:
                continue
            began_s = time.monotonic()
            try:
                row[f"{name}_per_s"], row[f"{name}_two_streams_per_s"] = _rates(network, batch, options.seconds)
            except RuntimeError as error:
                row["error"] = f"{name}: {str(error).splitlines()[0]}"
            row[f"{name}_took_s"] = round(time.monotonic() - began_s, 1)
        _tell(row)


def _tell(row: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def _pictures(count: int) -> torch.Tensor:
    # Random: zeros run faster than pictures do.
    return torch.randint(0, 256, (count, _CROP_PX, _CROP_PX, 3), dtype=torch.uint8, device=_DEVICE)


def _rates(network: nn.Module, batch: int, seconds: float) -> tuple[float, float]:
    """Images a second: by one graph, and by two on streams of their own."""
    streams = cuda_streams(_DEVICE, 2)
    with torch.inference_mode():
        inputs = [_pictures(batch) for _ in streams]
        works = [partial(network, pictures) for pictures in inputs]
        for stream, work in zip(streams, works, strict=True):
            stream.warm_up(work)
        captured = [stream.capture(work) for stream, work in zip(streams, works, strict=True)]
    replays = [replay for replay, _ in captured]
    single_s = _seconds_per_round(streams[:1], replays[:1], seconds)
    both_s = _seconds_per_round(streams, replays, seconds)
    return batch / single_s, 2 * batch / both_s


def _seconds_per_round(streams: Sequence[CudaStream], replays: list[Callable[[], None]], seconds: float) -> float:
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
