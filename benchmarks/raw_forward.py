"""The network alone, in a process of its own: how fast the machine can run it at all.

Reads `{"compiled": bool, "precision": "bf16", "batch": 8, "seconds": 0.5}` line by line and answers `{"images_per_s": ..., "p50_ms": ...}`;
`p50_ms` is one pass. The inputs are ready, normalised and in the network's own number format; the outputs are the logits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.servers.classifier import device, dtype, load_network

_WARM_UP_PASSES = 3


def main() -> None:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    weights: Path = parser.parse_args().weights

    @cache
    def network(precision: str, compiled: bool) -> Any:  # noqa: ANN401 # as load_network
        return load_network(weights, precision, compiled=compiled)

    for line in sys.stdin:
        question = json.loads(line)
        answer = measure(
            network(question["precision"], question["compiled"]), question["precision"], question["batch"], question["seconds"]
        )
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def measure(network: Any, precision: str, batch: int, seconds: float) -> dict[str, float]:  # noqa: ANN401 # as load_network
    """Run passes for some seconds, three at the least."""
    inputs = torch.randn(batch, 3, 224, 224).to(device(), dtype(precision), memory_format=torch.channels_last)
    took_s: list[float] = []
    with torch.inference_mode():
        for number in range(10_000_000):
            began_s = time.perf_counter()
            network(inputs)
            if device() == "cuda":
                torch.cuda.synchronize()
            if number >= _WARM_UP_PASSES:
                took_s.append(time.perf_counter() - began_s)
            if len(took_s) >= _WARM_UP_PASSES and sum(took_s) >= seconds:
                break
    return {"images_per_s": batch * len(took_s) / sum(took_s), "p50_ms": statistics.median(took_s) * 1e3}


if __name__ == "__main__":
    main()
