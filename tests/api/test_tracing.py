"""When traces go out, and what stops the start because it would send none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from api.settings import ConfigurationError
from api.tracing import check_tracing, tracer_for
from support.service import Service

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_SERVICE_NAME": "x"},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "true"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=str,
)
def test_traces_are_off_unless_there_is_an_endpoint(environment: dict[str, str]) -> None:
    check_tracing(environment)
    assert tracer_for("api-0", environment) is None


@pytest.mark.parametrize(
    "environment",
    [ENDPOINT, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector:4318/v1/traces"}, {**ENDPOINT, "OTEL_TRACES_EXPORTER": "otlp"}],
    ids=str,
)
def test_an_endpoint_is_enough(environment: dict[str, str]) -> None:
    check_tracing(environment)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "grpc://s3cret:s3cret@collector:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://s3cret:4318s3cret"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "/s3cret"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER"),
    ],
    ids=str,
)
def test_what_would_send_nothing_is_refused_by_name(change: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} must be ") as refused:
        check_tracing(ENDPOINT | change)
    assert "s3cret" not in str(refused.value)


_WITHOUT_THE_EXTRA = """
import sys
class Missing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing)
"""


def _serve(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "api.cli", "serve"]
    full = Service.clean_environment({"LENSGATE_HTTP__PORT": "0", "PYTHONPATH": str(folder)} | environment)
    return subprocess.run(command, cwd=folder, env=full, capture_output=True, text=True, timeout=60, check=False)


def test_an_endpoint_without_the_extra_stops_the_start_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_WITHOUT_THE_EXTRA)
    run = _serve(tmp_path, ENDPOINT)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("lensgate: error: OTEL_EXPORTER_OTLP_ENDPOINT")
    assert line.endswith("In a checkout: make install")
    assert "child_started" not in run.stdout


_LOADED = """
import sys
import api.worker_process
from api.tracing import tracer_for
tracer_for("api-0", {})
print([name for name in sys.modules if name.startswith("opentelemetry.sdk") or "otlp" in name])
"""


def test_nothing_of_the_extra_is_loaded_without_an_endpoint() -> None:
    run = subprocess.run([sys.executable, "-c", _LOADED], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "[]\n"
