"""Traces: spans of a real service arrive at a real OTLP/HTTP receiver, and one that does not answer slows nothing."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from support.leaks import leaks
from support.otlp_receiver import WAIT_S, OtlpReceiver, Received, otlp_receiver
from support.scrape import answered
from support.service import PACKAGED, Service

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = {"authenticate", "decode", "queue", "forward"}
SERVER, INTERNAL = 2, 1
_SETTINGS = PACKAGED | {
    "OTEL_BSP_SCHEDULE_DELAY": "50",
    "OTEL_BSP_MAX_QUEUE_SIZE": "64",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "64",
    "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
    "FASTAPI_OTEL_AUTO_CONFIGURE": "true",  # the framework's own spans would be a second account of the same request
    "OTEL_EXPORTER_OTLP_HEADERS": "x-collector-key=s3cret",
}


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def traced(receiver: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("traced"), _SETTINGS | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}) as service:
        service.wait_ready()
        yield service


@pytest.fixture(scope="module")
def token(traced: Service) -> str:
    return traced.token(traced.create_client("tracer", "predict"))


def _headers(token: str, trace_id: str, flags: str = "01") -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "traceparent": f"00-{trace_id}-{SPAN}-{flags}", "tracestate": "vendor=1"}


def _one(spans: list[Received], name: str) -> Received:
    (span,) = [span for span in spans if span.name == name]
    return span


def test_a_prediction_leaves_a_span_for_itself_and_one_for_each_stage(
    traced: Service, receiver: OtlpReceiver, token: str, photographs_by_name: dict[str, bytes]
) -> None:
    picture = photographs_by_name["coffee.png"]
    headers = _headers(token, TRACE) | {"Content-Type": "image/png"}
    response = httpx.post(f"{traced.url}/predict", content=picture, headers=headers, timeout=60)
    spans = receiver.trace(TRACE, {"POST /predict", *STAGES})
    whole = _one(spans, "POST /predict")
    line = traced.wait_for("request", request_id=response.headers["x-request-id"])

    assert {span.name for span in spans} == {"POST /predict", *STAGES}
    assert (whole.parent_id, whole.kind, whole.state, whole.failed) == (SPAN, SERVER, "vendor=1", False)
    assert (whole.trace_id, whole.span_id) == (line["trace_id"], line["span_id"])
    assert response.headers["traceparent"] == f"00-{TRACE}-{whole.span_id}-01"
    assert whole.attributes == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "lensgate.request_id": line["request_id"],
        "lensgate.client_id": line["client_id"],
    }
    for name in STAGES:
        stage = _one(spans, name)
        assert (stage.parent_id, stage.kind) == (whole.span_id, INTERNAL)
        assert whole.began_ns <= stage.began_ns <= stage.ended_ns <= whole.ended_ns
    order = sorted((_one(spans, name) for name in STAGES), key=lambda span: span.began_ns)
    assert [span.name for span in order] == ["authenticate", "decode", "queue", "forward"]
    # Whole microseconds: the spans hold nanoseconds, the line thousandths of milliseconds.
    for name, field in (("authenticate", "auth_ms"), ("decode", "decode_ms"), ("queue", "queue_ms"), ("forward", "infer_ms")):
        span = _one(spans, name)
        assert (span.ended_ns - span.began_ns) / 1e6 == pytest.approx(line[field], abs=0.002)
    assert _one(spans, "decode").attributes == {
        "lensgate.image.format": line["image_format"],
        "lensgate.image.width": line["image_width"],
        "lensgate.image.height": line["image_height"],
    }
    assert _one(spans, "forward").attributes == {
        "lensgate.model": line["model"],
        "lensgate.batch_size": 1,
        "lensgate.engine": "engine-0",
    }


def test_what_sends_says_who_it_is_as_the_environment_says(traced: Service, receiver: OtlpReceiver, token: str) -> None:
    trace_id = "1" * 32
    httpx.get(f"{traced.url}/models", headers=_headers(token, trace_id), timeout=30)
    (span, _) = receiver.trace(trace_id, {"GET /models", "authenticate"})
    assert span.resource["service.name"] == "lensgate"
    assert span.resource["service.instance.id"].endswith("/api-0")
    assert span.resource["deployment.environment.name"] == "test"
    assert receiver.headers[-1]["x-collector-key"] == "s3cret"


def test_a_batch_has_the_stages_of_each_picture(
    traced: Service, receiver: OtlpReceiver, token: str, photographs_by_name: dict[str, bytes]
) -> None:
    trace_id = "2" * 32
    files = [("file", (name, picture)) for name, picture in photographs_by_name.items()]
    httpx.post(f"{traced.url}/predict/batch", files=files, headers=_headers(token, trace_id), timeout=60)
    spans = receiver.trace(trace_id, {"POST /predict/batch", *STAGES}, count=2 + 3 * len(files))
    names = [span.name for span in spans]
    assert [names.count(name) for name in ("decode", "queue", "forward")] == [len(files)] * 3


def test_a_refusal_has_its_code_and_a_path_that_is_none_is_no_name(traced: Service, receiver: OtlpReceiver, token: str) -> None:
    refused, unknown = "3" * 32, "4" * 32
    httpx.get(f"{traced.url}/models", headers=_headers(token + "x", refused), timeout=30)
    httpx.get(f"{traced.url}/../{'a' * 99}", headers=_headers(token, unknown), timeout=30)
    span = _one(receiver.trace(refused, {"GET /models", "authenticate"}), "GET /models")
    assert (span.attributes["error.type"], span.attributes["http.response.status_code"], span.failed) == ("invalid_token", 401, False)
    span = _one(receiver.trace(unknown, {"GET", "authenticate"}), "GET")
    assert "http.route" not in span.attributes


def test_a_trace_that_its_caller_does_not_record_is_not_sent(traced: Service, receiver: OtlpReceiver, token: str) -> None:
    unrecorded, recorded = "5" * 32, "6" * 32
    response = httpx.get(f"{traced.url}/models", headers=_headers(token, unrecorded, "00"), timeout=30)
    assert response.headers["traceparent"].startswith(f"00-{unrecorded}-")
    assert response.headers["traceparent"].endswith("-00")
    httpx.get(f"{traced.url}/models", headers=_headers(token, recorded), timeout=30)
    receiver.trace(recorded, {"GET /models"})
    assert [span for span in receiver.spans if span.trace_id == unrecorded] == []


def test_without_a_caller_a_trace_begins_and_is_sent(traced: Service, receiver: OtlpReceiver) -> None:
    response = traced.get("/livez")
    _, trace_id, span_id, flags = response.headers["traceparent"].split("-")
    assert flags == "01"
    (span,) = receiver.trace(trace_id, {"GET /livez"})
    assert (span.span_id, span.parent_id) == (span_id, "")


def test_no_secret_leaves_with_a_span(traced: Service, receiver: OtlpReceiver, token: str) -> None:
    trace_id = "7" * 32
    path = f"{traced.url}/models?access_token={token}"
    httpx.get(path, headers=_headers(token, trace_id) | {"X-Request-ID": "no-secret"}, timeout=30)
    receiver.trace(trace_id, {"GET /models"})
    text = receiver.bodies.decode("latin-1")
    assert "no-secret" in text
    assert token not in text
    assert leaks(text.splitlines(), traced.folder / "keys") == []


def test_a_receiver_that_answers_nothing_slows_no_request_and_no_end(traced: Service, receiver: OtlpReceiver, token: str) -> None:
    """The last one here: the service ends while its exporter waits."""
    while receiver.requests.acquire(blocking=False):
        pass
    receiver.answers.clear()
    assert traced.get("/livez").status_code == 200
    assert receiver.requests.acquire(timeout=WAIT_S)  # it has that span now, and does not answer
    with httpx.Client(base_url=traced.url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as http:
        responses = [http.get("/models") for _ in range(100)]
    assert {response.status_code for response in responses} == {200}
    answered(traced, *responses)
    assert not receiver.answers.is_set()
    assert not receiver.requests.acquire(blocking=False)  # the exporter waited all the time
    assert traced.stop() == 0
