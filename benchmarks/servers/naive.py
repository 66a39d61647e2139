"""The service of the usual tutorial: FastAPI, the model inside the async handler, base64 in JSON. It also takes the raw bytes.

With its model stubbed it is "plain FastAPI": no token, no limit, no log. Started with:

    python -m uvicorn benchmarks.servers.naive:app
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel

from benchmarks.servers.classifier import Classifier, crop, open_picture
from benchmarks.weights import EXPECTED_CLASS

_STUBBED = os.environ["BENCH_STUBBED"].split(",")
_ANSWER = {"class_id": EXPECTED_CLASS, "label": "stub", "confidence": 1.0}

app = FastAPI()
classifier = (
    None
    if "model" in _STUBBED
    else Classifier(Path(os.environ["BENCH_WEIGHTS"]), os.environ["BENCH_PRECISION"], compiled=False, max_batch=1)
)


class Body(BaseModel):
    image: str


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/predict")
async def predict(body: Body) -> dict[str, Any]:
    return _classify(base64.b64decode(body.image))


@app.post("/predict/raw")
async def predict_raw(request: Request) -> dict[str, Any]:
    return _classify(await request.body())


def _classify(data: bytes) -> dict[str, Any]:
    if "decode" in _STUBBED:
        return _ANSWER
    picture = open_picture(data)
    if classifier is None:
        crop(picture)
        return _ANSWER
    return classifier.classify(classifier.prepare(picture).unsqueeze(0))[0]
