"""`/metrics` of the real gate: who may read it, what it says of several processes, and what hostile callers can do to it (case 107)."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx
import psutil
import pytest

from api.errors import KINDS
from api.metric_files import SIZES_BYTES
from support.held import API, ENGINE, Held, connection_to
from support.raw_http import RawConnection
from support.scrape import Scrape, answered, metric_folder, scraper
from support.service import Service

TIERS: Final = '{"standard": {"images": "1000000/minute", "in_flight": 64}, "tiny": {"images": "3/day", "in_flight": 1}}'


@pytest.fixture(scope="module")
def pair(start_gate: Callable[..., Service]) -> Service:
    """Two workers."""
    return start_gate({"LENSGATE_HTTP__WORKERS": "2", "LENSGATE_SECURITY__TIERS": TIERS})


@pytest.fixture(scope="module")
def scrape(pair: Service) -> Callable[[], Scrape]:
    return scraper(pair)


@pytest.fixture
def coffee(photographs_by_name: Mapping[str, bytes]) -> bytes:
    return photographs_by_name["coffee.png"]


def test_107_metrics_without_the_scope_are_401_or_403(gate: Service, token: str) -> None:
    assert (gate.get("/metrics").status_code, gate.get("/metrics").json()["code"]) == (401, "missing_token")
    refused = gate.get("/metrics", token)
    assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")
    assert 'scope="metrics"' in refused.headers["www-authenticate"]
    assert gate.get("/metrics/", token).status_code == 404


def test_107_with_several_workers_the_sums_are_right_whoever_answers(pair: Service, scrape: Callable[[], Scrape], coffee: bytes) -> None:
    token = pair.token(pair.create_client("sums", "predict", "metrics"))
    bearer = {"Authorization": f"Bearer {token}"}
    before = scrape()
    seen = []
    for worker, count in zip(pair.children(API), (2, 3), strict=True):
        with connection_to(pair, worker) as http:
            answers = [http.post("/predict", content=coffee, headers=bearer | {"Content-Type": "image/png"}) for _ in range(count)]
            answered(pair, *answers, http.get("/nothing-here", headers=bearer))
            seen.append(Scrape(http.get("/metrics", headers=bearer)))
    with connection_to(pair, pair.children(API)[0]) as http:
        seen.append(Scrape(http.get("/metrics", headers=bearer)))
    for after, predictions, strays in zip(seen, (2, 5, 5), (1, 2, 2), strict=True):
        for name, labels, expected in (
            ("lensgate_requests_total", {"route": "/predict", "method": "POST", "status": "200"}, predictions),
            ("lensgate_requests_total", {"route": "unmatched", "method": "GET", "status": "404"}, strays),
            ("lensgate_request_duration_seconds_count", {"route": "/predict"}, predictions),
            ("lensgate_decode_duration_seconds_count", {}, predictions),
            ("lensgate_queue_duration_seconds_count", {}, predictions),
            ("lensgate_batch_size_sum", {}, predictions),
            ("lensgate_refusals_total", {"reason": "not_found"}, strays),
        ):
            assert after(name, **labels) - before(name, **labels) == expected, (name, labels)
        assert after("lensgate_model_info", engine="engine-0", model="efficientnet_lite0") == 1
        assert after("lensgate_requests_in_flight") >= 1
        assert not [sample for sample in after.samples if sample.name.startswith("lensgate_gpu_") and "gpu" not in sample.labels]


def test_107_no_label_is_the_callers(pair: Service, scrape: Callable[[], Scrape]) -> None:
    before = scrape()
    hostile = 'x"}\\n\u2028' + "y" * 500
    for method in ("GET", "PROPFIND", "M-SEARCH", "QUERY", "TRACE", "BREW", "get", "G" * 300):
        for target in ("/metrics", "/" + "z" * 500, "/%0a%22%7d", "/predict?x=1", "*", "http://a/b"):
            with RawConnection(pair.url) as connection:
                connection.request(method, target, "Connection: close", f"User-Agent: {hostile.encode().hex()}", "X-Request-ID: mine")
                connection.closed_after_s()
    for number in range(20):
        pair.get(f"/path-{number}", hostile.encode("ascii", "ignore").decode()[:1] + f"token-{number}")
    after = scrape()
    requests = "lensgate_requests_total"
    routes = set(httpx.get(f"{pair.url}/openapi.json", timeout=30).json()["paths"]) | {"/docs", "/openapi.json", "unmatched"}
    assert after.labels(requests, "route") <= routes
    assert after.labels(requests, "method") <= {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"}
    assert after(requests, method="other") > before(requests, method="other")
    refusals = "lensgate_refusals_total"
    assert after(refusals, reason="malformed_body") > before(refusals, reason="malformed_body"), "what the wire guard refuses is counted"
    assert after.labels(requests, "status") <= {"200", "499", *(str(kind.status) for kind in KINDS.values())}
    assert after.labels(refusals, "reason") <= {*KINDS, "silent", "unread", "invalid_client", "registry_lost"}
    assert not [word for word in ("zzz", "token-", "path-", "mine", "PROPFIND") if word in after.text]
    assert len(after.samples) - len(before.samples) < 100


def test_hits_of_a_limit_are_counted_by_tier(pair: Service, scrape: Callable[[], Scrape], coffee: bytes) -> None:
    token = pair.token(pair.create_client("tiny", "predict", tier="tiny"))
    bearer = {"Authorization": f"Bearer {token}"}
    worker = pair.children(API)[0]
    with connection_to(pair, worker) as first, connection_to(pair, worker) as second:
        while '"images";q=3' not in second.get("/models", headers=bearer).headers["ratelimit-policy"]:
            pass  # until the worker has read which tier the new client has
        held = Held(pair, coffee, token, worker=worker, http=first)
        try:
            refused = second.get("/models", headers=bearer)
            assert refused.json()["code"] == "too_many_in_flight"
        finally:
            held.engine.resume()
        assert held.answer().status_code == 200
        answers = [second.get("/models", headers=bearer) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 429, 429]
    answered(pair, refused, *answers)
    after = scrape()
    assert after("lensgate_rate_limit_hits_total", tier="tiny", limit="in_flight") == 1
    assert after("lensgate_rate_limit_hits_total", tier="tiny", limit="images") == 2


def test_115_counters_stay_when_a_worker_is_killed_whenever_that_is(pair: Service, scrape: Callable[[], Scrape], coffee: bytes) -> None:
    victim, other = pair.children(API)
    sizes = {path: path.stat().st_size for path in metric_folder(victim).iterdir()}
    token = pair.token(pair.create_client("killed", "predict"))
    before = former = scrape()
    with connection_to(pair, victim) as http:
        held = Held(pair, coffee, token, worker=victim, http=http)
        try:
            for _ in range(3):  # at work, then twice while it starts
                after = len(pair.log)
                victim.kill()
                pair.wait_for("child_died", after=after)
                with connection_to(pair, other) as survivor:
                    answered(pair, survivor.get("/livez"))
                now = scrape()
                assert_nothing_is_lost(former, now)
                former = now
                victim = psutil.Process(pair.wait_for("child_started", after=after)["child_pid"])
        finally:
            held.engine.resume()
        with pytest.raises(httpx.TransportError):
            held.answer()
    pair.wait_for("worker_serving", pid=victim.pid)
    with connection_to(pair, victim) as http:
        answered(pair, http.get("/livez"))
    now = scrape()
    assert_nothing_is_lost(former, now)
    # It went on with its own counts: three requests to make a connection to it or to the other, and one on each, and one scrape for each.
    assert now("lensgate_requests_total", route="/livez") - before("lensgate_requests_total", route="/livez") == 1 + 3 * 2 + 2
    assert now("lensgate_restarts_total", process="engine-0") == before("lensgate_restarts_total", process="engine-0")
    assert 1 <= now("lensgate_restarts_total") - before("lensgate_restarts_total") <= 3
    assert now("lensgate_requests_in_flight") == 1, "the scrape; what the dead one held is forgotten"
    assert {path: path.stat().st_size for path in metric_folder(victim).iterdir()} == sizes


def test_116_counters_stay_when_the_engine_is_killed(pair: Service, scrape: Callable[[], Scrape], coffee: bytes) -> None:
    token = pair.token(pair.create_client("engine", "predict"))
    answered(pair, pair.predict(coffee, token))
    (engine,) = pair.children(ENGINE)
    before = scrape()
    after = len(pair.log)
    engine.kill()
    pair.wait_for("child_died", after=after, child="engine-0")
    dead = scrape()
    assert_nothing_is_lost(before, dead)
    assert "lensgate_model_info" not in dead.families, "nothing is served now"
    pair.wait_ready(after=after)
    answered(pair, pair.predict(coffee, token))
    back = scrape()
    assert_nothing_is_lost(before, back)
    assert back("lensgate_forward_duration_seconds_count") == before("lensgate_forward_duration_seconds_count") + 1
    assert back("lensgate_restarts_total", process="engine-0") == before("lensgate_restarts_total", process="engine-0") + 1
    assert back("lensgate_model_info") == 1


def assert_nothing_is_lost(former: Scrape, now: Scrape) -> None:
    for name, family in former.families.items():
        if family.type != "gauge":
            fallen = [one for one in family.samples if now(one.name, **one.labels) < one.value]
            assert not fallen, name


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_the_values_go_with_the_service(start_gate: Callable[..., Service], killed: bool) -> None:
    service = start_gate()
    workers: list[Any] = service.children(API) + service.children(ENGINE)
    folder = metric_folder(workers[0])
    # Four kinds of values for the engine, the API worker and the one that succeeds it when it is renewed.
    assert len(list(folder.iterdir())) == 3 * 4
    if killed:
        service.process.kill()
        service.process.wait(60)
    else:
        assert service.stop() == 0
    psutil.wait_procs(workers, timeout=60)
    assert not folder.exists()


def test_117_a_disk_that_is_full_from_the_start_costs_the_sums_and_nothing_else(start_gate: Callable[..., Service], coffee: bytes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZES_BYTES["counter"] - 1, hard))  # the registry needs less
    try:
        service = start_gate(ready=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    service.wait_ready()
    token = service.token(service.create_client("full", "predict", "metrics"))
    answered(service, service.predict(coffee, token))
    now = Scrape(service.get("/metrics", token))
    assert now("lensgate_requests_total", route="/predict", status="200") == 1
    assert not [sample for sample in now.samples if sample.name.endswith("_created")]
    assert len([line for line in service.log if line["event"] == "metrics_not_shared"]) == 1
    (worker,) = service.children(API)
    assert not [mapped.path for mapped in worker.memory_maps() if "lensgate-metrics-" in mapped.path]
