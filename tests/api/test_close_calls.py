"""Large JPEGs whose first answer is a close call are decoded in full and run once more."""

from __future__ import annotations

import asyncio
import io
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from inference.decoding.pool import Decoded
from inference.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, Overloaded
from inference.image import decode
from inference.types import Preprocessing

if TYPE_CHECKING:
    from api.conftest import Gate

_JPEG = {"Content-Type": "image/jpeg"}


def _noise(width: int, height: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, kind)
    return encoded.getvalue()


LARGE = _noise(200, 150)
"""More than four times the 32 pixels that the model's pictures are resized to."""


def _outcomes(gate: Gate) -> dict[str, float]:
    registry = gate.services.metrics.registry
    names = ("confirmed", "changed", "left")
    return {name: registry.get_sample_value("lensgate_close_calls_total", {"outcome": name}) or 0.0 for name in names}


def _more(gate: Gate, before: dict[str, float]) -> dict[str, float]:
    return {name: count - before[name] for name, count in _outcomes(gate).items() if count != before[name]}


@pytest.mark.parametrize(("second", "label", "outcome"), [(0, "red", "confirmed"), (2, "blue", "changed")])
def test_a_close_call_is_decided_by_the_picture_decoded_in_full(gate: Gate, second: int, label: str, outcome: str) -> None:
    gate.model.close.extend([0, second])
    before = _outcomes(gate)
    response = gate.predict(content=LARGE, headers=_JPEG)

    assert (response.status_code, response.json()["label"]) == (200, label)
    assert [prediction["confidence"] for prediction in response.json()["predictions"]] == [0.5, 0.45, 0.05]
    drafted, whole = (
        decode(LARGE, preprocessing=gate.model.INFO.preprocessing, max_pixels=10**6, draft=draft).pixels for draft in (True, False)
    )
    assert [np.array_equal(call.pixels, expected) for call, expected in zip(gate.model.calls, (drafted, whole), strict=True)] == [
        True,
        True,
    ]
    assert _more(gate, before) == {outcome: 1}


def test_the_second_look_gets_what_is_left_of_the_time_and_is_told_of(gate: Gate) -> None:
    gate.model.close.extend([0, 0])
    response = gate.predict(content=LARGE, headers=_JPEG)

    first, second = gate.model.calls
    assert second.timeout_s < first.timeout_s == pytest.approx(gate.services.settings.inference.deadline_s)
    line = gate.log.request(response)
    assert (line["images"], line["close_calls"]) == (1, 1)
    assert (line["queue_ms"], line["infer_ms"]) == (0.5, 3.0)  # of both
    told = re.search(r"decode;dur=([0-9.]+)", response.headers["server-timing"])
    assert told is not None
    assert float(told[1]) == pytest.approx(line["decode_ms"], abs=0.006)  # each is rounded from the measured time by itself


def test_a_clear_answer_stands(gate: Gate) -> None:
    before = _outcomes(gate)
    response = gate.predict(content=LARGE, headers=_JPEG)

    assert response.status_code == 200
    assert gate.model.pictures_seen == 1
    assert "close_calls" not in gate.log.request(response)
    assert _more(gate, before) == {}


@pytest.mark.parametrize("data", [_noise(100, 90), _noise(200, 150, "PNG"), _noise(200, 150, "WEBP")], ids=["small", "PNG", "WebP"])
def test_what_was_decoded_in_full_is_not_looked_at_twice(gate: Gate, data: bytes) -> None:
    gate.model.close.append(1)

    assert gate.predict(content=data, headers=_JPEG).json()["label"] == "green"
    assert gate.model.pictures_seen == 1


@pytest.mark.parametrize(
    "error",
    [Overloaded(), DeadlineExceeded(), EngineUnavailable(), InferenceFailed("The prediction failed."), TimeoutError()],
    ids=lambda error: type(error).__name__,
)
def test_where_the_second_look_comes_to_nothing_the_first_answer_stands(gate: Gate, error: Exception) -> None:
    gate.model.close.extend([0, error])
    before = _outcomes(gate)
    response = gate.predict(content=LARGE, headers=_JPEG)

    assert (response.status_code, response.json()["label"]) == (200, "red")
    assert gate.log.request(response)["close_calls"] == 1
    assert _more(gate, before) == {"left": 1}


def test_a_second_look_takes_nobodys_place(gate: Gate) -> None:
    gate.model.close.extend([0, 0])
    gate.predict(content=LARGE, headers=_JPEG)

    assert [call.may_displace for call in gate.model.calls] == [True, False]


def test_a_second_look_that_waits_for_a_decoder_is_given_up_at_the_deadline(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    decode_first = gate.services.decoder.decode
    waiting: list[asyncio.Future[Decoded]] = []

    async def decode(data: bytes, preprocessing: Preprocessing, *, client: str, draft: bool, may_displace: bool) -> Decoded:
        if draft:
            return await decode_first(data, preprocessing, client=client, draft=draft, may_displace=may_displace)
        waiting.append(asyncio.get_running_loop().create_future())
        return await waiting[0]

    monkeypatch.setattr(gate.services.decoder, "decode", decode)
    monkeypatch.setitem(gate.services.settings.inference.__dict__, "deadline_s", 0.2)
    gate.model.close.append(0)
    response = gate.predict(content=LARGE, headers=_JPEG)

    assert (response.status_code, response.json()["label"]) == (200, "red")
    assert waiting[0].cancelled()


def test_whoever_wants_one_class_gets_one_and_the_right_one(gate: Gate) -> None:
    gate.model.close.extend([0, 2])
    answer = gate.predict(path="/predict?top_k=1", content=LARGE, headers=_JPEG).json()

    assert [prediction["label"] for prediction in answer["predictions"]] == ["blue"]


def test_a_batch_looks_twice_at_its_close_calls_alone(gate: Gate) -> None:
    gate.model.close.extend([0, 0, 0])
    files = [("file", ("a.jpg", LARGE)), ("file", ("b.png", _noise(200, 150, "PNG")))]
    response = gate.predict(path="/predict/batch", files=files)

    assert response.status_code == 200
    line = gate.log.request(response)
    assert (line["images"], line["close_calls"]) == (2, 1)
    assert gate.model.pictures_seen == 3
