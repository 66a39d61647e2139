"""The shipped Prometheus watches a real service in which things go wrong: every target, rule, panel and alert does what it is for.

Time runs thirty times faster for Prometheus: every interval, window and wait of the shipped files is divided by 30. Besides that only the
target and the client are put in.
What takes longer than a fault can last here is shown in promtool's time by tests/deploy/test_observability_alerts.py.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple

import httpx
import pytest

from api.demo import photographs
from security.keys import create_key
from support.held import ENGINE
from support.prometheus import RULE_FILES, SHIPPED, Prometheus, program
from support.redis_server import RedisServer, redis_server
from support.service import PACKAGED, Service

DASHBOARDS: Final = SHIPPED.parent / "grafana" / "dashboards"
TIMES_FASTER: Final = 30
CALLERS: Final = 48
SETTINGS: Final = {
    "LENSGATE_HTTP__ADDRESS_LIMIT": "1000000/minute",
    "LENSGATE_SECURITY__TIERS": json.dumps(
        {"standard": {"images": "1000000/minute", "in_flight": 2 * CALLERS}, "tiny": {"images": "1/day", "in_flight": 4}}
    ),
    "LENSGATE_INFERENCE__DEADLINE_S": "2",
}
GRAFANA: Final = {"$instance": ".+", "$__rate_interval": "4s", "$__range": "60s"}
"""What Grafana puts into a query before it sends it."""


class Watched(NamedTuple):
    """A service, its Redis, and the Prometheus that watches both."""

    service: Service
    redis: RedisServer
    prometheus: Prometheus
    picture: bytes
    token: str
    stop_traffic: Callable[[], None]


def history(target: str) -> str:
    """What there is on other machines: a GPU, and a certificate."""
    now_s = int(time.time())
    gauges = {
        'lensgate_gpu_utilization_ratio{gpu="0"': 0.5,
        'lensgate_gpu_memory_used_bytes{gpu="0"': 10e9,
        'lensgate_gpu_memory_total_bytes{gpu="0"': 80e9,
        'lensgate_gpu_temperature_celsius{gpu="0"': 60,
        'lensgate_gpu_power_watts{gpu="0"': 300,
        'lensgate_tls_certificate_expires_timestamp_seconds{process="api-0"': now_s + 90 * 86_400,
    }
    lines = [f'{series},job="lensgate",instance="{target}"}} {value} {now_s}' for series, value in gauges.items()]
    return "\n".join([*lines, "# EOF\n"])


def traffic(service: Service, picture: bytes, token: str, limited: str, stop: threading.Event) -> None:
    """Somebody who is served, somebody with a bad token, and somebody who is over the limit, in turn."""
    with httpx.Client(base_url=service.url, timeout=30) as http:
        headers = {"Content-Type": "image/jpeg"}
        while not stop.is_set():
            http.post("/predict", content=picture, headers={**headers, "Authorization": f"Bearer {token}"})
            http.get("/models", headers={"Authorization": "Bearer nonsense"})
            http.get("/models", headers={"Authorization": f"Bearer {limited}"})
            stop.wait(0.05)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A service with a key that is too old, its usual traffic, and Prometheus, which has seen it."""
    program("prometheus")
    folder = tmp_path_factory.mktemp("watched")
    create_key(folder / "keys", created_at=time.time() - 91 * 86_400)
    picture = next(path for path in photographs() if path.name == "rocket.jpg").read_bytes()
    with redis_server() as redis, Service(folder, {**PACKAGED, **SETTINGS, "LENSGATE_SECURITY__RATE_LIMIT_STORAGE": redis.url}) as service:
        scraper, client, tiny = (
            service.create_client("prometheus", "metrics"),
            service.create_client("app"),
            service.create_client("tiny", tier="tiny"),
        )
        service.wait_ready()
        token, limited = service.token(client), service.token(tiny)
        target = httpx.URL(service.url).netloc.decode()
        stop = threading.Event()
        caller = threading.Thread(target=traffic, args=(service, picture, token, limited, stop))
        files = tmp_path_factory.mktemp("prometheus")
        with Prometheus(files, target, scraper, times_faster=TIMES_FASTER, history=history(target)) as prometheus:
            caller.start()

            def stop_traffic() -> None:
                stop.set()
                caller.join(60)

            try:
                yield Watched(service, redis, prometheus, picture, token, stop_traffic)
            finally:
                stop_traffic()


def panels(dashboard: str) -> list[dict[str, Any]]:
    board = json.loads((DASHBOARDS / dashboard).read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def substituted(query: str) -> str:
    for variable, value in GRAFANA.items():
        query = query.replace(variable, value)
    assert "$" not in query, query
    return query


def test_every_target_is_green_with_a_token_that_prometheus_got_by_itself(watched: Watched) -> None:
    def targets() -> list[tuple[str, str, str]]:
        active = watched.prometheus.api("targets", state="active")["activeTargets"]
        return [(target["labels"]["job"], target["health"], target["lastError"]) for target in active]

    watched.prometheus.wait(lambda: targets() == [("lensgate", "up", "")], "green")


def test_every_rule_evaluates_and_every_recorded_one_has_a_value(watched: Watched) -> None:
    prometheus = watched.prometheus

    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]

    assert len(rules()) == sum((SHIPPED / name).read_text().count("expr:") for name in RULE_FILES)
    prometheus.wait(lambda: all(rule["health"] == "ok" for rule in rules()), "every rule evaluated")
    recorded = [rule["name"] for rule in rules() if rule["type"] == "recording"]
    prometheus.wait(lambda: all(map(prometheus.query, recorded)), "a value for every recorded rule")


def test_every_query_of_every_panel_of_the_service_has_data(watched: Watched) -> None:
    missing = {(panel["title"], substituted(query["expr"])) for panel in panels("service.json") for query in panel["targets"]}
    assert len(missing) > 30

    def all_seen() -> bool:
        missing.difference_update([one for one in missing if watched.prometheus.query(one[1])])
        return not missing

    try:
        watched.prometheus.wait(all_seen, "data in every panel", 30)
    except AssertionError:
        pytest.fail(f"no data: {missing}")


def test_every_field_of_the_log_dashboard_is_in_the_log(watched: Watched) -> None:
    service = watched.service
    service.wait_for("request", code="invalid_token")
    service.wait_for("request", route="/predict", status=200)
    logged = {name for line in service.log if line["event"] == "request" for name in line}
    queries = [query["expr"] for panel in panels("logs.json") for query in panel["targets"]]
    used = {name for query in queries for name in re.findall(r"\| (?:unwrap )?(\w+)\b(?! *\|)", query)} - {"json", "unwrap"}
    used |= {name for query in queries for names in re.findall(r"by \(([^)]*)\)", query) for name in names.split(", ")}
    (columns,) = [
        step["options"]["include"]["names"]
        for panel in panels("logs.json")
        for step in panel.get("transformations", ())
        if step["id"] == "filterFieldsByName"
    ]
    assert len(used) > 10
    assert used | set(columns) - {"Time"} <= logged
    lines = [line for line in service.raw_log if '"event":"request"' in line]
    assert [json.loads(line)["event"] for line in lines] == ["request"] * len(lines) != [], "what the queries look for first"


def without_redis(watched: Watched) -> None:
    watched.redis.stop()


def with_an_engine_that_stands_still(watched: Watched) -> None:
    (engine,) = watched.service.children(ENGINE)
    engine.suspend()
    try:
        with ThreadPoolExecutor(CALLERS) as callers:
            answers = list(callers.map(lambda _: watched.service.predict(watched.picture, watched.token, "image/jpeg"), range(CALLERS)))
    finally:
        engine.resume()
    assert {answer.status_code for answer in answers} == {504}


def with_an_engine_that_dies_and_dies(watched: Watched) -> None:
    service, prometheus = watched.service, watched.prometheus
    for deaths in range(4):
        # It is killed only when it is known to run: a process that never got as far is no restart yet.
        started = f'lensgate_restarts_total{{process="engine-0"}} == {deaths}'
        prometheus.wait(partial(prometheus.query, started), started)
        after = len(service.log)
        for engine in service.children(ENGINE):
            engine.kill()
        service.wait_for("child_died", after=after, child="engine-0")


def with_what_has_gone_on_all_the_time(watched: Watched) -> None:
    """The key is old, and the traffic is what it is."""


def without_the_service(watched: Watched) -> None:
    watched.stop_traffic()
    watched.service.stop()


FAULTS: Final[Mapping[Callable[[Watched], None], tuple[str, ...]]] = {
    without_redis: ("LensgateRedisLost",),
    with_an_engine_that_stands_still: ("LensgateSlowFast", "LensgateErrorsFast"),
    with_an_engine_that_dies_and_dies: ("LensgateProcessRestarted", "LensgateEngineRestarting", "LensgateNotReady"),
    with_what_has_gone_on_all_the_time: ("LensgateRateLimitSurge", "LensgateTokenRefusalSurge", "LensgateSigningKeyOld"),
    without_the_service: ("LensgateDown",),
}
ANY_TIME: Final = {*FAULTS[with_what_has_gone_on_all_the_time], "LensgateSlowFast", "LensgateErrorsFast"}
"""What the traffic raises sooner or later, or a machine that has much else to do."""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_an_alert_fires_in_its_fault(fault: Callable[[Watched], None], watched: Watched) -> None:
    later = list(FAULTS)[list(FAULTS).index(fault) :]
    early = {name for one in later for name in FAULTS[one]} - ANY_TIME
    assert not watched.prometheus.firing() & early, "nothing fires before its fault"
    fault(watched)
    watched.prometheus.wait_for_alerts(*FAULTS[fault])
