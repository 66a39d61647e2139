"""A real Prometheus for a test: the shipped configuration with another target, and its API. promtool checks what no test can wait for."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import httpx
import pytest

SHIPPED: Final = Path(__file__).parents[2] / "deploy" / "observability" / "prometheus"
RULE_FILES: Final = ("recording.yml", "alerts.yml")
_OPTIONS: Final = ("--web.listen-address=127.0.0.1:0", "--log.level=info")
_LISTENING: Final = re.compile(r'msg="Listening on" address=(\S+)')
_DURATION: Final = re.compile(r"(?P<before>\[|for: |_interval: |_timeout: )(?P<number>\d+)(?P<unit>[smhd])\b")
"""Everything in the configuration and the rules that is a length of time, but for numbers of seconds in comparisons."""
_TIMEOUT_S: Final = 60.0


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`; the test is skipped where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip("Prometheus is not installed: apt-get install --no-install-recommends prometheus")
    return found


def promtool(*arguments: str | Path) -> str:
    """What it prints. It must be content."""
    run = subprocess.run([program("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def firing_at(folder: Path, series: Mapping[str, str], times: Mapping[str, Sequence[str]]) -> None:
    """Hold the shipped rules to which alerts fire, in promtool's own time.

    Args:
        folder: for promtool's input.
        series: promtool's notation of the values, one a minute from 0 on, by the series.
        times: the names of all alerts that fire, sorted, by the time (`1h5m`).
    """
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"} > 0)',
                    "eval_time": time,
                    "exp_samples": [{"labels": json.dumps(name).join(["{alertname=", "}"]), "value": 1} for name in names],
                }
                for time, names in times.items()
            ],
        }
    ]
    rules = [str(SHIPPED / name) for name in RULE_FILES]
    content: dict[str, Any] = {"rule_files": rules, "evaluation_interval": "1m", "tests": tests}
    path = folder / "alerts.json"  # JSON is YAML
    path.write_text(json.dumps(content))
    promtool("test", "rules", path)


class Prometheus:
    """The shipped Prometheus, watching one service, with every interval, window and wait the same number of times shorter.

    Args:
        folder: for its files.
        target: host and port of the service.
        client: of the service, with the scope `metrics`, as `lensgate clients create --json` prints it.
        times_faster: what every duration of the configuration and the rules is divided by.
        history: what it has seen before, in OpenMetrics' format.
    """

    def __init__(self, folder: Path, target: str, client: Mapping[str, Any], *, times_faster: int, history: str) -> None:
        self._folder = folder
        for name in ("prometheus.yml", *RULE_FILES):
            text = (SHIPPED / name).read_text().replace("host.docker.internal:8000", target)
            text = text.replace("client_of_prometheus", str(client["client_id"]))
            (folder / name).write_text(_DURATION.sub(lambda found: _shorter(found, times_faster), text))
        (folder / "lensgate-secret").write_text(str(client["client_secret"]) + "\n")  # as an editor leaves it
        (folder / "history").write_text(history)

    def __enter__(self) -> Self:
        data = self._folder / "data"
        promtool("tsdb", "create-blocks-from", "openmetrics", self._folder / "history", data)
        self._process = subprocess.Popen(
            [program("prometheus"), f"--config.file={self._folder}/prometheus.yml", f"--storage.tsdb.path={data}", *_OPTIONS],
            stderr=subprocess.PIPE,
            text=True,
        )
        self._log: list[str] = []
        self._logged = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        with self._logged:
            self._logged.wait_for(lambda: self._address() is not None or self._process.poll() is not None, _TIMEOUT_S)
        address = self._address()
        assert address is not None, "".join(self._log)
        self._http = httpx.Client(base_url=f"http://{address}", timeout=10)
        self.wait(lambda: self._http.get("/-/ready").status_code == httpx.codes.OK, "ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._process.terminate()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
        self._reader.join(10)
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._logged:
                self._log.append(line)
                self._logged.notify_all()

    def _address(self) -> str | None:
        return next((found[1] for line in self._log if (found := _LISTENING.search(line))), None)

    def api(self, path: str, **parameters: str) -> Any:  # noqa: ANN401 # each of its answers has another shape
        """The data of an answer of its API."""
        answer = self._http.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == httpx.codes.OK, (parameters, answer.text)
        return answer.json()["data"]

    def query(self, expression: str) -> list[float]:
        """The values that an expression has now, without those that are no number."""
        values = [float(one["value"][1]) for one in self.api("query", query=expression)["result"]]
        return [value for value in values if math.isfinite(value)]

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = 45) -> None:
        """Look again and again until something holds."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}; firing: {sorted(self.firing())}"
            time.sleep(0.1)  # its API tells nobody when something changes

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.api("alerts")["alerts"] if alert["state"] == "firing"}

    def wait_for_alerts(self, *names: str) -> None:
        """Wait until all of these have fired at the same time."""
        self.wait(lambda: set(names) <= self.firing(), f"{names} firing")


def _shorter(found: re.Match[str], times: int) -> str:
    number_ms = int(found["number"]) * {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}[found["unit"]]
    return f"{found['before']}{number_ms // times}ms"
