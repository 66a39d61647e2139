"""Schemathesis reads `/openapi.json` of the real service and tries what it says: every answer must be one that is documented.

The suite's run is short. `SCHEMATHESIS_EXAMPLES=1000 python -m pytest tests/e2e/test_schemathesis.py --timeout 3600` is the long one.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.http_settings import HttpSettings
from security.settings import SecuritySettings
from support.service import PACKAGED, Service

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "6"))
"""Test cases for each operation and phase."""
REQUESTS_PER_EXAMPLE = 5
"""Five operations take anything at all; on the others there is little to vary."""
TIMEOUT_S = 60 + 10 * EXAMPLES
TESTS = Path(__file__).resolve().parent.parent

_CONFIGURATION = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401"]

[[operations]]
include-path-regex = "^/oauth2/"
headers = { Authorization = "Basic ${BASIC}" }
# Any text is a scope by the document; credentials may stand in the form or in the header, but not in both; and guessing them is limited.
checks.positive_data_acceptance.expected-statuses = [200, 400, 401, 429]

[[operations]]
include-path-regex = "^/(models|metrics)"
headers = { Authorization = "Bearer ${TOKEN}" }

[[operations]]
include-path-regex = "^/predict"
headers = { Authorization = "Bearer ${TOKEN}" }
# No schema can say which bytes are a picture.
checks.positive_data_acceptance.expected-statuses = [200, 401, 413, 415, 422]

[[operations]]
include-path-regex = "^/predict/batch"
# Any part of a form is bytes, whatever it was meant as, and one that is no picture gets its error in its place.
checks.negative_data_rejection.expected-statuses = [200, 400, 401, 403, 404, 405, 413, 415, 422, 429]
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of its own, whose limits are out of the way."""
    generous = {
        "LENSGATE_HTTP__ADDRESS_LIMIT": "1000000/minute",
        "LENSGATE_SECURITY__TIERS": '{"standard": {"images": "1000000/minute", "in_flight": 64}}',
        "LENSGATE_SECURITY__TOKEN_TTL_S": "7200",
    }
    known = {f"LENSGATE_HTTP__{name}".upper() for name in HttpSettings.model_fields}
    known |= {f"LENSGATE_SECURITY__{name}".upper() for name in SecuritySettings.model_fields}
    settings = {name: value for name, value in generous.items() if name in known}
    with Service(tmp_path_factory.mktemp("schemathesis"), PACKAGED | settings) as service:
        service.wait_ready()
        yield service


def _run(service: Service, folder: Path, token: str, basic: str, *options: str) -> str:
    (folder / "schemathesis.toml").write_text(_CONFIGURATION)
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "SCHEMATHESIS_HOOKS": "support.schemathesis_hooks",
        "TOKEN": token,
        "BASIC": basic,
    }
    program = Path(sys.executable).with_name("schemathesis")
    command = [str(program), "run", f"{service.url}/openapi.json", "--checks", "all", "--continue-on-failure", "--no-color", "--no-shrink"]
    command += ["--generation-database", "none", "--max-examples", str(EXAMPLES), *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def _requests(service: Service, after: int) -> list[dict[str, Any]]:
    return [line for line in service.log[after:] if line["event"] == "request"]


def _assert_no_server_error(service: Service, requests: list[dict[str, Any]]) -> None:
    failed = [line for line in requests if line["status"] >= 500]
    assert failed == []
    assert [line for line in service.log if line["level"] == "error"] == []


@pytest.mark.timeout(TIMEOUT_S + 120)
def test_every_answer_to_a_client_is_documented(service: Service, tmp_path: Path) -> None:
    """With a token on the guarded paths and a client's credentials on the OAuth endpoints; sequences of requests along the links too."""
    client = service.create_client("schemathesis", "predict", "metrics", "introspect")
    basic = base64.b64encode(f"{client['client_id']}:{client['client_secret']}".encode()).decode()
    before = len(service.log)
    report = _run(service, tmp_path, service.token(client), basic)
    requests = _requests(service, before)
    _assert_no_server_error(service, requests)
    assert len(requests) >= REQUESTS_PER_EXAMPLE * EXAMPLES
    assert "2 covered / 2 selected" in report, "the links of the document were not followed"
    succeeded = Counter(line["route"] for line in requests if line["status"] == 200)
    wanted = {"/oauth2/token", "/oauth2/revoke", "/oauth2/introspect", "/predict", "/predict/batch", "/models"}
    assert wanted <= succeeded.keys(), succeeded


@pytest.mark.timeout(TIMEOUT_S + 120)
def test_every_answer_to_a_stranger_is_documented(service: Service, tmp_path: Path) -> None:
    """With credentials that are none: nothing guarded is ever answered."""
    before = len(service.log)
    _run(service, tmp_path, "none", base64.b64encode(b"nobody:nothing").decode(), "--phases", "coverage,fuzzing")
    requests = _requests(service, before)
    _assert_no_server_error(service, requests)
    assert len(requests) >= REQUESTS_PER_EXAMPLE * EXAMPLES
    guarded = {"/predict", "/predict/batch", "/models"}
    assert {line["status"] for line in requests if line["route"] in guarded and line["method"] != "OPTIONS"} == {401}
    assert not any("client_id" in line for line in requests)
