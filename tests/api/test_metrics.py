"""What one worker counts, at the shipped application; the sums over several processes are in tests/attacks (cases 107, 112 and 115)."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, values

from api.app import create_app
from api.credential_metrics import CredentialMetrics
from api.errors import KINDS
from api.metric_files import SIZES_BYTES, forget_gauges, make_metric_files, remove_metric_files, restarts, share_metrics
from api.metrics import Metrics
from inference.worker.gpu_metrics import GpuMetrics
from inference.worker.metrics import EngineMetrics
from support.scrape import Scrape

if TYPE_CHECKING:
    from api.conftest import Gate

ROOT = Path(__file__).parents[2]


def scrape(gate: Gate) -> Scrape:
    return Scrape(gate.http.get("/metrics", headers={"Authorization": f"Bearer {gate.token('scraper')}"}))


def test_requests_are_counted_by_route_method_and_status(gate: Gate) -> None:
    before = scrape(gate)
    answers = [gate.http.get("/livez"), gate.http.get("/livez"), gate.http.head("/livez"), gate.http.post("/livez"), gate.http.get("/a/b")]
    for answer in answers:
        gate.log.request(answer)
    after = scrape(gate)

    def increase(**labels: str) -> float:
        name = "lensgate_requests_total"
        return after(name, **labels) - before(name, **labels)

    assert increase(route="/livez", method="GET", status="200") == 2
    assert increase(route="/livez", method="HEAD", status="200") == 1
    assert increase(route="/livez", method="POST", status="405") == 1
    assert increase(route="unmatched", method="GET", status="401") == 1
    count = "lensgate_request_duration_seconds_count"
    assert after(count, route="/livez") - before(count, route="/livez") == 4


def test_a_prediction_is_measured_and_a_refusal_has_its_reason(gate: Gate, picture: Callable[..., bytes]) -> None:
    before = scrape(gate)
    gate.log.request(gate.predict(content=picture(), headers={"Content-Type": "image/jpeg"}))
    gate.log.request(gate.predict(content=b"no picture", headers={"Content-Type": "image/jpeg"}))
    files = [("file", ("a", picture(), "image/jpeg")), ("file", ("b", b"no picture", "image/jpeg"))]
    gate.log.request(gate.predict(path="/predict/batch", files=files))
    after = scrape(gate)

    for name, expected in (
        ("lensgate_decode_duration_seconds_count", 2),
        ("lensgate_queue_duration_seconds_count", 2),
        ("lensgate_tokens_issued_total", 4),
    ):
        assert after(name) - before(name) == expected, name
    assert after("lensgate_queue_duration_seconds_sum") - before("lensgate_queue_duration_seconds_sum") == pytest.approx(2 * 0.00025)
    reason = "unsupported_media_type"
    assert after("lensgate_refusals_total", reason=reason) - before("lensgate_refusals_total", reason=reason) == 2, "one of them in a batch"


@pytest.mark.parametrize(
    ("token", "cause"), [("nonsense", "malformed"), ("x" * 5000, "too_long"), ("eyJhbGciOiJub25lIn0.e30.AA", "header_incomplete")]
)
def test_a_refused_token_is_counted_by_its_fault(gate: Gate, token: str, cause: str) -> None:
    before = scrape(gate)
    answer = gate.http.get("/models", headers={"Authorization": f"Bearer {token}"})
    assert gate.log.request(answer)["cause"] == cause
    after = scrape(gate)
    assert after("lensgate_token_refusals_total", cause=cause) - before("lensgate_token_refusals_total", cause=cause) == 1
    assert after("lensgate_refusals_total", reason="invalid_token") - before("lensgate_refusals_total", reason="invalid_token") == 1


def test_every_reason_is_there_before_it_happens(gate: Gate) -> None:
    assert scrape(gate).labels("lensgate_refusals_total", "reason") >= {*KINDS, "silent", "unread"}


def test_head_is_answered_as_get_but_without_the_body(gate: Gate) -> None:
    answer = gate.http.head("/metrics", headers={"Authorization": f"Bearer {gate.token('scraper')}"})
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("name", ["InvalidToken", "OAuthError"])
def test_what_becomes_a_label_is_a_word_of_ours(name: str) -> None:
    for path in (ROOT / "security").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name and node.args:
                why_it_was_revoked = (path.name, ast.unparse(node.args[0])) == ("authentication.py", "refusal")
                assert isinstance(node.args[0], ast.Constant) or why_it_was_revoked, ast.unparse(node)


def test_the_docs_have_a_row_for_every_metric_and_for_no_other() -> None:
    rows = re.findall(r"^\| `(lensgate_\w+)` \| (\w+) \|(.*?)\| .+ \|$", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    registry = CollectorRegistry()
    EngineMetrics("engine-0", registry)
    GpuMetrics("0", registry=registry)
    restarts(registry)
    CredentialMetrics("api-0", registry)
    made: list[Any] = [*registry._collector_to_names, *Metrics().registry._collector_to_names]
    assert {name: (kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels in rows} == {
        metric._name + ("_total" if metric._type == "counter" else ""): (metric._type, list(metric._labelnames)) for metric in made
    }
    assert len(rows) == len(made)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of one worker, in which this process keeps its metrics for the length of the test."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    folder = make_metric_files(["api-0"])
    assert folder is not None
    assert share_metrics(str(folder), "api-0") == folder
    yield folder
    remove_metric_files(folder)


def test_there_is_room_for_every_label_that_there_can_be(gate: Gate, shared: Path) -> None:
    metrics = Metrics(shared)
    routes = [route.path for route in create_app(gate.services).routes if hasattr(route, "path")]
    statuses = {*(kind.status for kind in KINDS.values()), 200, 204, 499}
    for route in (*routes, "unmatched"):
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "M-SEARCH"):
            for status in statuses:
                metrics.answered(route, method, status, 0.001)
    for number in range(100):
        metrics.limit_hit("in_flight", "t" * 60 + str(number))
        metrics.token_refused("c" * 60 + str(number))
        metrics.refused("r" * 60 + str(number))
    assert {path.name.split("_api-0")[0]: path.stat().st_size for path in shared.iterdir()} == SIZES_BYTES
    assert metrics.exposition().count(b"lensgate_requests_total{") == (len(routes) + 1) * 8 * len(statuses)


def test_a_dead_childs_gauges_are_forgotten_and_its_counts_are_not(shared: Path) -> None:
    metrics = Metrics(shared)
    metrics.began()
    metrics.refused("overloaded")
    assert b"\nlensgate_requests_in_flight 1.0\n" in metrics.exposition()
    forget_gauges(shared, "api-0")
    shown = metrics.exposition()
    assert b"lensgate_requests_in_flight" not in shown
    assert b'\nlensgate_refusals_total{reason="overloaded"} 1.0\n' in shown


def test_files_that_somebody_has_swept_away_stop_nothing(shared: Path) -> None:
    metrics = Metrics(shared)
    remove_metric_files(shared)
    metrics.refused("overloaded")
    forget_gauges(shared, "api-0")
    assert b'\nlensgate_refusals_total{reason="overloaded"} 1.0\n' in metrics.exposition()
    assert share_metrics(str(shared), "api-0") is None
