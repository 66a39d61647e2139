"""docs/logs.md against the source, and against lines of the real application. `support.service` holds every service of every test to it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from typer.testing import CliRunner

from api.cli import app
from support.log_schema import ON_EVERY_LINE, PAGE, faults, schema

if TYPE_CHECKING:
    from api.conftest import Gate

ROOT = PAGE.parents[1]
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}


class Call(NamedTuple):
    """One place in the source that logs."""

    where: str
    event: str | None
    """None where it is no literal."""
    level: str
    fields: frozenset[str]
    whole: bool
    """False where more fields come from a mapping."""


def _levels_of(node: ast.expr) -> set[str]:
    """The levels of `_log.info`, and of `_log.info if sure else _log.warning`."""
    if isinstance(node, ast.IfExp):
        return _levels_of(node.body) | _levels_of(node.orelse)
    if isinstance(node, ast.Attribute) and node.attr in LEVELS and re.search(r"\b_log$|get_logger\(", ast.unparse(node.value)):
        return {node.attr}
    return set()


def _calls(path: Path) -> Iterator[Call]:
    tree = ast.parse(path.read_text())
    aliases: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and (levels := _levels_of(node.value)):
            aliases[node.targets[0].id] = levels
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        methods = aliases.get(node.func.id, set()) if isinstance(node.func, ast.Name) else _levels_of(node.func)
        for method in methods:
            event = str(node.args[0].value) if isinstance(node.args[0], ast.Constant) else None
            given = {keyword.arg for keyword in node.keywords}
            fields = {"exception" if name == "exc_info" else name for name in given if name is not None}
            fields |= {"exception"} if method == "exception" else set()
            yield Call(f"{path.relative_to(ROOT)}:{node.lineno}", event, LEVELS[method], frozenset(fields), None not in given)


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    return [call for package in ("api", "security", "inference") for path in (ROOT / package).rglob("*.py") for call in _calls(path)]


def test_every_event_has_a_fixed_name(calls: list[Call]) -> None:
    assert [call.where for call in calls if call.event is None] == []


def test_every_event_of_the_source_stands_on_the_page_and_no_other(calls: list[Call]) -> None:
    assert {call.event for call in calls} == schema().events.keys()


def test_the_source_logs_at_the_levels_of_the_page(calls: list[Call]) -> None:
    assert {name: {call.level for call in calls if call.event == name} for name in schema().events} == {
        name: event.levels for name, event in schema().events.items()
    }


def test_the_source_logs_the_fields_of_the_page(calls: list[Call]) -> None:
    wrong = []
    for call in calls:
        event = schema().events[str(call.event)]
        if call.fields - event.required - event.optional - {"request_id"} or (call.whole and event.required - call.fields):
            wrong.append(call)
    assert wrong == []


def test_the_page_explains_every_field_that_it_names_and_no_other() -> None:
    named = ON_EVERY_LINE | {"logger"}
    assert named.union(*(event.required | event.optional for event in schema().events.values())) == schema().types.keys()


def test_the_pages_own_examples_are_as_it_says() -> None:
    blocks = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = [json.loads(line) for block in blocks for line in block.splitlines()]
    assert len(lines) >= 5
    assert faults(lines) == []


_GOOD: Mapping[str, Any] = {
    "timestamp": "t",
    "level": "error",
    "event": "child_died",
    "process": "supervisor",
    "pid": 1,
    "child": "engine-0",
    "exit_code": -9,
    "restart_in_s": 0.1,
}


@pytest.mark.parametrize(
    "change",
    [
        {"pid": None},
        {"event": "child_dead"},
        {"level": "info"},
        {"process": "api-0"},
        {"exit_code": "-9"},
        {"restart_in_s": True},
        {"host": "a field of another event"},
        {"reasons": "a field of none"},
        {"logger": "a.library"},
    ],
    ids=str,
)
def test_a_line_that_is_not_as_the_page_says_is_found(change: Mapping[str, Any]) -> None:
    assert faults([_GOOD]) == []
    assert len(faults([{**_GOOD, **change}])) >= 1


@pytest.mark.parametrize("missing", sorted(_GOOD))
def test_a_line_without_a_field_that_must_be_there_is_found(missing: str) -> None:
    assert faults([{name: value for name, value in _GOOD.items() if name != missing}])


def test_requests_of_every_kind_are_logged_as_the_page_says(gate: Gate) -> None:
    bearer = {"Authorization": f"Bearer {gate.token()}"}
    answers = [
        gate.http.get("/livez"),
        gate.http.get("/nowhere", headers=bearer),
        gate.http.request("PATCH", "/models", headers=bearer),
        gate.http.get("/metrics", headers=bearer),
        gate.http.get("/models", headers={"Authorization": "Bearer x"}),
        gate.http.post("/oauth2/token", data={"grant_type": "client_credentials", "client_id": "x", "client_secret": "y"}),
        gate.http.post("/predict", content=b"no picture", headers=bearer),
        gate.http.post("/predict/batch", json={"images": ["eA==", "eA=="]}, headers=bearer),
    ]
    assert faults(gate.log.request(answer) for answer in answers) == []


def test_a_failure_that_nobody_expects_is_logged_as_the_page_says(gate: Gate, picture: Callable[..., bytes]) -> None:
    gate.model.failure = RuntimeError("nobody expects this")
    wanted = gate.predict(content=picture(), headers={"Content-Type": "image/jpeg"}).headers["x-request-id"]
    failure = gate.log.wait_for(lambda line: line["event"] == "internal_error" and line["request_id"] == wanted)
    request = gate.log.wait_for(lambda line: line["event"] == "request" and line["request_id"] == wanted)
    assert faults([failure, request]) == []


def test_what_commands_change_is_logged_beside_their_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LENSGATE_LOG__FORMAT", "json")

    def run(*arguments: str) -> tuple[str, dict[str, Any]]:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        (line,) = map(json.loads, result.stderr.splitlines())
        assert faults([line]) == []
        assert line["process"] == "cli"
        # Which of all registries and folders of keys it was.
        assert line.get("registry", line.get("keys_dir")) in {str(tmp_path / "lensgate.db"), str(tmp_path / "keys")}
        return result.stdout, line

    answer, created = run("clients", "create", "my-app", "--scope", "predict", "--json")
    client = json.loads(answer)
    assert created["client_id"] == client["client_id"]
    assert client["client_secret"] not in json.dumps(created)
    answer, rotated = run("clients", "rotate-secret", "my-app", "--json")
    assert json.loads(answer)["client_secret"] not in json.dumps(rotated)
    commands = (
        ("clients", "set-tier", "my-app", "standard"),
        ("clients", "disable", "my-app"),
        ("clients", "enable", "my-app"),
        ("clients", "delete", "my-app"),
        ("tokens", "revoke", "a-token-id"),
        ("keys", "rotate"),
    )
    others = [run(*command)[1]["event"] for command in commands]
    assert [created["event"], rotated["event"], *others] == [
        *("client_created", "client_secret_rotated", "client_tier_set", "client_disabled", "client_enabled", "client_deleted"),
        *("token_revoked", "key_rotated"),
    ]
