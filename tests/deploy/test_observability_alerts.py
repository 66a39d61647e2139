"""When each of the shipped alerts fires and when it does not, over hours and months, in promtool's own time.

tests/deploy/test_observability.py sees those fire in a real Prometheus that a fault can raise within seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from support.prometheus import RULE_FILES, SHIPPED, firing_at, promtool

WHO: Final = 'job="lensgate", instance="a:8000"'
MINUTES: Final = 400
DAY_S: Final = 86_400


def one(name: str, **labels: str) -> str:
    return f"{name}{{{WHO}{''.join(f', {label}={value!r}' for label, value in labels.items())}}}".replace("'", '"')


UP: Final = one("up")
MODEL: Final = one("lensgate_model_info", engine="engine-0")
ANSWERED: Final = one("lensgate_requests_total", route="/predict", method="POST", status="200")
FAILED: Final = one("lensgate_requests_total", route="/predict", method="POST", status="503")
TIMED: Final = one("lensgate_request_duration_seconds_count", route="/predict")
QUICK: Final = one("lensgate_request_duration_seconds_bucket", route="/predict", le="0.5")
ENGINE: Final = one("lensgate_restarts_total", process="engine-0")
SECOND_ENGINE: Final = one("lensgate_restarts_total", process="engine-1")
WORKER: Final = one("lensgate_restarts_total", process="api-0")
WAIT: Final = one("lensgate_predicted_wait_seconds", engine="engine-0")
SECOND_WAIT: Final = one("lensgate_predicted_wait_seconds", engine="engine-1")
NOT_READY: Final = one("lensgate_refusals_total", reason="not_ready")
BAD_TOKENS: Final = one("lensgate_refusals_total", reason="invalid_token")
BAD_CLIENTS: Final = one("lensgate_refusals_total", reason="invalid_client")
LIMITED: Final = one("lensgate_rate_limit_hits_total", limit="images", tier="standard")
FORWARD_FAILURES: Final = one("lensgate_forward_failures_total")
DECODER_DEATHS: Final = one("lensgate_decoder_deaths_total")
REGISTRY_LOST: Final = one("lensgate_registry_lost")
REFUSED_GRANTS: Final = one("lensgate_refusals_total", reason="registry_lost")
FALLBACKS: Final = one("lensgate_redis_fallbacks_total")
LOG_DROPS: Final = one("lensgate_log_drops_total")
KEY: Final = one("lensgate_signing_key_created_timestamp_seconds", process="api-0")
CERTIFICATE: Final = one("lensgate_tls_certificate_expires_timestamp_seconds", process="api-0")
GPU_BUSY: Final = one("lensgate_gpu_utilization_ratio", gpu="0")
GPU_HEAT: Final = one("lensgate_gpu_temperature_celsius", gpu="0")
GPU_USED: Final = one("lensgate_gpu_memory_used_bytes", gpu="0")
GPU_TOTAL: Final = one("lensgate_gpu_memory_total_bytes", gpu="0")


def always(value: float) -> str:
    return f"{value}x{MINUTES}"


def growing(a_minute: float) -> str:
    return f"0+{a_minute}x{MINUTES}"


HEALTHY: Final[Mapping[str, str]] = {
    UP: always(1),
    MODEL: always(1),
    ANSWERED: growing(1000),
    FAILED: always(0),
    TIMED: growing(1000),
    QUICK: growing(1000),
    ENGINE: always(0),
    WORKER: always(0),
    WAIT: always(0.05),
    NOT_READY: always(0),
    BAD_TOKENS: growing(5),
    LIMITED: growing(20),
    FORWARD_FAILURES: always(0),
    DECODER_DEATHS: always(0),
    REGISTRY_LOST: always(0),
    FALLBACKS: always(0),
    LOG_DROPS: always(0),
    KEY: always(-30 * DAY_S),  # time begins at 0
    CERTIFICATE: always(60 * DAY_S),
    GPU_BUSY: always(0.5),
    GPU_HEAT: always(60),
    GPU_USED: always(10e9),
    GPU_TOTAL: always(80e9),
}
"""A thousand requests a minute, and of everything bad what there always is."""


def errors(share: float) -> dict[str, str]:
    return {ANSWERED: growing(1000 * (1 - share)), FAILED: growing(1000 * share)}


def slow(share: float) -> dict[str, str]:
    return {QUICK: growing(1000 * (1 - share))}


ONE_BAD_MINUTE: Final = {
    ANSWERED: f"0+1000x365 365000 366000+1000x{MINUTES}",
    FAILED: f"0x365 1000x{MINUTES}",
}
"""After six hours, every request of a minute fails."""
RARE_CALLS: Final = {
    ANSWERED: growing(0.05),
    FAILED: growing(0.05),
    TIMED: growing(0.1),
    QUICK: growing(0.05),
    BAD_TOKENS: always(0),
    LIMITED: always(0),
}
"""Six calls an hour; half of them fail and are slow."""

SCENARIOS: Final[Mapping[str, tuple[Mapping[str, str | None], Mapping[str, Sequence[str]]]]] = {
    "healthy": ({}, {"5m": [], "1h": [], "2h": []}),
    "no answer": ({UP: "1x10 0x20"}, {"11m": [], "14m": ["LensgateDown"]}),
    "no target": ({UP: None}, {"3m": ["LensgateDown"]}),
    "no model": ({MODEL: "1x10 stale"}, {"13m": [], "17m": ["LensgateNotReady"]}),
    "refused as not ready": ({NOT_READY: growing(1)}, {"5m": [], "8m": ["LensgateNotReady"]}),
    "refused as not ready for a moment": ({NOT_READY: "0x10 50x60"}, {"12m": [], "16m": [], "20m": []}),
    "2 % fail": (errors(0.02), {"10m": ["LensgateErrorsFast"], "30m": ["LensgateErrorsFast", "LensgateErrorsSlow"]}),
    "0.7 % fail": (errors(0.007), {"30m": ["LensgateErrorsFast", "LensgateErrorsSlow"]}),
    "0.4 % fail": (errors(0.004), {"10m": [], "1h": ["LensgateErrorsSlow"]}),
    "0.15 % fail": (errors(0.0015), {"10m": [], "1h": ["LensgateErrorsSlow"]}),
    "0.08 % fail": (errors(0.0008), {"1h": []}),
    "one bad minute": (
        ONE_BAD_MINUTE,
        {"6h5m": [], "6h9m": ["LensgateErrorsFast"], "6h13m": [], "6h35m": ["LensgateErrorsSlow"]},
    ),
    "rare calls, of which half are bad": (RARE_CALLS, {"20m": ["LensgateErrorsSlow", "LensgateSlowSlow"]}),
    "20 % slow": (slow(0.2), {"10m": ["LensgateSlowFast"], "30m": ["LensgateSlowFast", "LensgateSlowSlow"]}),
    "7 % slow": (slow(0.07), {"30m": ["LensgateSlowFast", "LensgateSlowSlow"]}),
    "4 % slow": (slow(0.04), {"10m": [], "1h": ["LensgateSlowSlow"]}),
    "1.5 % slow": (slow(0.015), {"10m": [], "1h": ["LensgateSlowSlow"]}),
    "0.8 % slow": (slow(0.008), {"1h": []}),
    "an engine dies three times": (
        {ENGINE: "0x10 1 2 3x100"},
        {"11m": ["LensgateProcessRestarted"], "13m": ["LensgateEngineRestarting", "LensgateProcessRestarted"], "1h30m": []},
    ),
    "an engine dies twice": ({ENGINE: "0x10 1 2x100"}, {"13m": ["LensgateProcessRestarted"]}),
    "a worker dies three times": ({WORKER: "0x10 1 2 3x100"}, {"13m": ["LensgateProcessRestarted"]}),
    "one engine of two is gone": ({SECOND_ENGINE: always(0)}, {"10m": [], "17m": ["LensgateEngineMissing"]}),
    "a decoder dies": ({DECODER_DEATHS: "0x10 1x100"}, {"9m": [], "11m": ["LensgateDecoderDied"], "1h30m": []}),
    "a batch fails": ({FORWARD_FAILURES: "0x10 1x100"}, {"9m": [], "11m": ["LensgateForwardFailures"], "40m": []}),
    "the only queue is long": ({WAIT: always(3)}, {"4m": [], "6m": ["LensgateQueueFilling"]}),
    "one queue of two is long": ({WAIT: always(3), SECOND_WAIT: always(0.1)}, {"6m": [], "1h": []}),
    "a third is over a limit": ({LIMITED: growing(350)}, {"8m": [], "20m": ["LensgateRateLimitSurge"]}),
    "a tenth is over a limit": ({LIMITED: growing(100)}, {"1h": []}),
    "a fifth has bad tokens": ({BAD_TOKENS: growing(200)}, {"8m": [], "15m": ["LensgateTokenRefusalSurge"]}),
    "a fifth has bad secrets": ({BAD_CLIENTS: growing(200)}, {"15m": ["LensgateTokenRefusalSurge"]}),
    "a twentieth has bad tokens": ({BAD_TOKENS: growing(50)}, {"1h": []}),
    "a key of 91 days": ({KEY: always(-91 * DAY_S)}, {"8m": [], "20m": ["LensgateSigningKeyOld"]}),
    "a key of 89 days": ({KEY: always(-89 * DAY_S)}, {"20m": []}),
    "a certificate for 20 days": ({CERTIFICATE: always(20 * DAY_S)}, {"8m": [], "20m": ["LensgateCertificateEnding"]}),
    "a certificate for 2 days": (
        {CERTIFICATE: always(2 * DAY_S)},
        {"8m": [], "20m": ["LensgateCertificateEnding", "LensgateCertificateEndsNow"]},
    ),
    "no certificate": ({CERTIFICATE: None}, {"20m": []}),
    "no registry": ({REGISTRY_LOST: "0x10 1x60", REFUSED_GRANTS: "0x10 1+5x60"}, {"10m": [], "20m": ["LensgateRegistryLost"]}),
    "no registry for a moment": ({REGISTRY_LOST: "0x10 1 0x60"}, {"11m": [], "12m": []}),
    "no Redis": ({FALLBACKS: growing(10)}, {"2m": [], "4m": ["LensgateRedisLost"]}),
    "a slow log": ({LOG_DROPS: "0x10 7x100"}, {"9m": [], "11m": ["LensgateLogDrops"]}),
    "no GPU": (dict.fromkeys((GPU_BUSY, GPU_HEAT, GPU_USED, GPU_TOTAL)), {"1h": []}),
    "a GPU is gone": ({GPU_BUSY: " ".join(["0.5", "0.5", *["NaN"] * 10])}, {"1m": [], "4m": ["LensgateGpuLost"]}),
    "a GPU is hot": ({GPU_HEAT: always(86)}, {"9m": [], "11m": ["LensgateGpuHot"]}),
    "the memory of a GPU is full": ({GPU_USED: always(79e9)}, {"9m": [], "11m": ["LensgateGpuMemoryFull"]}),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_alerts_fire_in_their_fault_and_in_no_other(scenario: str, tmp_path: Path) -> None:
    changes, times = SCENARIOS[scenario]
    series = {name: values for name, values in {**HEALTHY, **changes}.items() if values is not None}
    firing_at(tmp_path, series, times)


def test_there_is_a_scenario_for_every_alert() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", (SHIPPED / "alerts.yml").read_text()))
    assert alerts == {name for _, times in SCENARIOS.values() for names in times.values() for name in names}


def test_prometheus_accepts_the_configuration_and_the_rules(tmp_path: Path) -> None:
    assert "SUCCESS" in promtool("check", "config", SHIPPED / "prometheus.yml")
    assert promtool("check", "rules", *(SHIPPED / name for name in RULE_FILES)).count("SUCCESS") == len(RULE_FILES)
