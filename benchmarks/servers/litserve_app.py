"""LitServe as its documentation says it is fastest: batches, ZeroMQ between its processes, pictures decoded by a pool of threads.

It takes base64 in JSON, and the raw bytes through a dependency of FastAPI's.
"""

# No `from __future__ import annotations`: LitServe hands the annotation of `decode_request` to FastAPI as it stands.

import argparse
import base64
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import litserve  # type: ignore[import-untyped]  # it ships no types
from fastapi import Depends, Request

from benchmarks.servers.classifier import Classifier, crop, open_picture
from benchmarks.weights import EXPECTED_CLASS

_ANSWER = {"class_id": EXPECTED_CLASS, "label": "stub", "confidence": 1.0}


async def read_body(request: Request) -> Any:  # noqa: ANN401 # bytes, or whatever the JSON holds
    if request.headers["content-type"] == "application/json":
        return await request.json()
    return await request.body()


class PictureAPI(litserve.LitAPI):  # type: ignore[misc]  # as above
    def configure(self, options: argparse.Namespace) -> None:
        self._options = options

    def setup(self, device: str) -> None:
        options = self._options
        self._pool = ThreadPoolExecutor(options.threads)
        self._classifier: Classifier | None = None
        if "model" not in options.stubbed:
            import torch

            if device == "cpu":
                torch.set_num_threads(options.threads)
            self._torch = torch
            self._classifier = Classifier(options.weights, options.precision, compiled=options.compiled, max_batch=options.max_batch)

    def decode_request(self, request: Annotated[bytes | dict[str, str], Depends(read_body)]) -> bytes:
        return request if isinstance(request, bytes) else base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> Any:  # noqa: ANN401 # a tensor, or nothing where the model is stubbed
        if "decode" in self._options.stubbed:
            return inputs
        if self._classifier is None:
            return list(self._pool.map(lambda data: crop(open_picture(data)), inputs))
        prepare = self._classifier.prepare
        return self._torch.stack(list(self._pool.map(lambda data: prepare(open_picture(data)), inputs)))

    def predict(self, x: Any) -> list[dict[str, Any]]:  # noqa: ANN401 # as `batch` makes it
        return [_ANSWER] * len(x) if self._classifier is None else self._classifier.classify(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--stubbed", default="", help="model, or model,decode")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--batch-timeout", type=float, default=0.01, help="seconds")
    parser.add_argument("--workers", type=int, default=1, help="inference workers on each device")
    parser.add_argument("--api-servers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each inference worker")
    options = parser.parse_args()
    options.stubbed = options.stubbed.split(",")
    api = PictureAPI(max_batch_size=options.max_batch, batch_timeout=options.batch_timeout)
    api.configure(options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # LitServe ends in order at Ctrl-C only
    server = litserve.LitServer(api, workers_per_device=options.workers, fast_queue=True, timeout=120)
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=options.api_servers,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
