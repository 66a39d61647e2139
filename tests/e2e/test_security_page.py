"""docs/security.md says nothing that is not so: its tests exist, its commands exist, and its emergency steps work on a running service."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from attacks.table import find_tests, read_cases
from support.oauth import GRANT, operate, post, wait_for_status
from support.service import Service

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text()
_NUMBERS = re.compile(r"\b[Cc]ases? ((?:\d+(?:–\d+)?(?:, )?)+)")


def numbers_of(text: str) -> list[tuple[int, int]]:
    """Every case or range of cases that a text names, as first and last."""
    found = [part for match in _NUMBERS.findall(text) for part in match.rstrip(", ").split(", ")]
    return [(int(part.split("–")[0]), int(part.split("–")[-1])) for part in found]


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 40
    for path, test in named:
        assert (ROOT / path).is_file(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"


def test_every_case_that_the_page_names_has_a_test() -> None:
    tried, cases = {test.number for test in find_tests()}, read_cases().numbers
    named = numbers_of(PAGE)
    assert len(named) > 60
    for first, last in named:
        assert first in cases, first
        assert {number for number in cases if first <= number <= last} <= tried, f"{first}–{last}"


def test_every_row_of_the_tables_of_risks_names_a_test_or_a_case() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| (?:API|V)\d+ |\| CVE-", line)]
    assert len(rows) == 10 + 15 + 3
    assert [row for row in rows if not numbers_of(row) and "`tests/" not in row] == []


def test_the_waivers_of_the_page_are_those_of_the_audit() -> None:
    waived = re.findall(r'^id = "(CVE-[\d-]+)"', (ROOT / "locks" / "audit-waivers.toml").read_text(), re.MULTILINE)
    assert set(re.findall(r"CVE-\d+-\d+", PAGE)) == set(waived)


def test_every_source_file_and_page_that_it_names_exists() -> None:
    named = re.findall(r"`((?:api|security|inference)/[\w/.]*)`", PAGE) + [f"docs/{link}" for link in re.findall(r"\]\(([^)#]+)\)", PAGE)]
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("command", sorted({" ".join(words) for words in re.findall(r"`lensgate (\w+) ([\w-]+)", PAGE)}))
def test_every_command_of_the_page_exists(command: str) -> None:
    words = [sys.executable, "-m", "api.cli", *command.split(), "--help"]
    run = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stderr
    options = {option for line in PAGE.splitlines() for option in re.findall(rf"`lensgate {command}[^`]* (--[\w-]+)", line)}
    assert all(option in run.stdout for option in options)


def test_the_emergency_steps_work_on_a_running_service(start_service: Callable[..., Service]) -> None:
    service = start_service({"LENSGATE_SECURITY__POLL_S": "0.5"})
    service.wait_ready()
    client = service.create_client("leaky", "predict")
    forged = service.token(client)
    assert service.get("/models", forged).status_code == 200

    # A signing key.
    (leaked,) = (service.folder / "keys").glob("*.pem")
    operate(service, "keys", "rotate")
    assert leaked.stem in operate(service, "keys", "list")
    (delete,) = re.findall(r"`(rm [^`]+)`", PAGE)
    delete = f'lensgate() {{ "{sys.executable}" -m api.cli "$@"; }}; {delete.replace("<kid>", leaked.stem)}'
    subprocess.run(["bash", "-c", delete], cwd=service.folder, env=service.environment, timeout=100, check=True)
    assert not leaked.exists()
    wait_for_status(service, forged, 401)
    kids = [key["kid"] for key in service.get("/.well-known/jwks.json").json()["keys"]]
    assert len(kids) == 1
    assert kids != [leaked.stem]
    assert service.get("/models", service.token(client)).status_code == 200

    # A client's secret.
    stolen = service.token(client)
    operate(service, "clients", "rotate-secret", "leaky", "--overlap-s", "0")
    assert post(service, "/oauth2/token", GRANT, client).status_code == 401
    operate(service, "clients", "disable", "leaky")
    wait_for_status(service, stolen, 401)

    # A token.
    other = service.create_client("other", "predict")
    after = len(service.log)
    lost = service.token(other)
    operate(service, "tokens", "revoke", service.wait_for("request", after=after, route="/oauth2/token")["token_id"])
    wait_for_status(service, lost, 401)
    assert service.get("/models", service.token(other)).status_code == 200
