"""Every operator's mistake is one clear line and a non-zero exit code, with nothing half-started."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, load_pem_private_key
from typer.testing import CliRunner

from api.cli import app, main
from support.log_schema import faults
from support.service import PACKAGED

Run = Callable[..., subprocess.CompletedProcess[str]]


def error_of(run: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error, after checking that it is one, that the code is not 0 and that nothing was started."""
    assert run.returncode != 0
    assert "Traceback" not in run.stdout + run.stderr
    assert "child_started" not in run.stdout
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith("lensgate: error: ")
    return line


def test_mistyped_settings_stop_the_start_in_one_message_that_names_all_of_them(lensgate: Run) -> None:
    run = lensgate(
        "serve",
        environment={
            "LENSGATE_HTTP__PROT": "8000",
            "LENSGATE_HTTP__WORKERS": "many",
            "LENSGATE_HTPP__PORT": "1",
            "LENSGATE_SECURITY__DATABASE_URL": "mysql://user:hunter2@host/db",
        },
    )
    assert run.returncode != 0
    assert re.findall(r"^  (LENSGATE_\w+): ", run.stderr, re.MULTILINE) == [
        "LENSGATE_HTPP__PORT",
        "LENSGATE_HTTP__PROT",
        "LENSGATE_HTTP__WORKERS",
        "LENSGATE_SECURITY__DATABASE_URL",
    ]
    assert "hunter2" not in run.stdout + run.stderr


def test_names_that_kubernetes_injects_are_not_ours(lensgate: Run) -> None:
    run = lensgate("config", "check", environment={"LENSGATE_PORT": "tcp://10.0.0.1:8000", "LENSGATE_SERVICE_HOST": "10.0.0.1"})
    assert run.returncode == 0, run.stderr


def test_config_check_shows_every_setting_and_no_password(lensgate: Run) -> None:
    run = lensgate("config", "check", environment={"LENSGATE_SECURITY__DATABASE_URL": "postgresql+asyncpg://gate:hunter2@db/gate"})
    assert run.returncode == 0
    assert "LENSGATE_SECURITY__DATABASE_URL=postgresql+asyncpg://gate:***@db/gate" in run.stdout
    assert "hunter2" not in run.stdout
    assert "LENSGATE_HTTP__PORT=8000" in run.stdout.splitlines()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"LENSGATE_INFERENCE__LABELS": "nowhere.txt"}, "LENSGATE_INFERENCE__LABELS: there is no file nowhere.txt"),
        ({"LENSGATE_HTTP__TLS_CERT": "no.crt", "LENSGATE_HTTP__TLS_KEY": "no.key"}, "no.crt"),
    ],
)
def test_config_check_shows_all_and_says_what_would_stop_the_start(lensgate: Run, settings: dict[str, str], complaint: str) -> None:
    run = lensgate("config", "check", environment=settings)
    assert complaint in error_of(run)
    assert {f"{name}={value}" for name, value in settings.items()} <= set(run.stdout.splitlines())


def test_config_check_says_everything_that_is_wrong_at_once(lensgate: Run) -> None:
    settings = {
        "LENSGATE_INFERENCE__LABELS": "nowhere.txt",
        "LENSGATE_INFERENCE__WEIGHTS": "nowhere.pth",
        "LENSGATE_HTTP__TLS_CERT": "no.crt",
        "LENSGATE_HTTP__TLS_KEY": "no.key",
    }
    run = lensgate("config", "check", environment=settings)
    assert run.returncode != 0
    assert run.stderr.splitlines() == [
        "lensgate: error: the settings are not usable:",
        "  LENSGATE_HTTP__TLS_CERT: no.crt cannot be read: No such file or directory",
        "  LENSGATE_INFERENCE__WEIGHTS: there is no file nowhere.pth",
        "  LENSGATE_INFERENCE__LABELS: there is no file nowhere.txt",
    ]


def test_a_dotenv_file_in_the_working_directory_is_read_and_checked(lensgate: Run, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LENSGATE_HTTP__PORT=8123\n")
    assert "LENSGATE_HTTP__PORT=8123" in lensgate("config", "check").stdout
    (tmp_path / ".env").write_text("LENSGATE_HPPT__PORT=8123\n")
    assert "LENSGATE_HPPT__PORT: no such setting; did you mean LENSGATE_HTTP__PORT?" in lensgate("config", "check").stderr


def test_a_missing_weights_file(lensgate: Run) -> None:
    assert "there is no file nowhere.pth" in error_of(
        lensgate("serve", environment={"LENSGATE_HTTP__PORT": "0", "LENSGATE_INFERENCE__WEIGHTS": "nowhere.pth"})
    )


def test_an_unknown_model_ends_the_service_with_a_suggestion(lensgate: Run) -> None:
    run = lensgate("serve", environment={"LENSGATE_HTTP__PORT": "0", "LENSGATE_INFERENCE__MODEL": "resnet55"})
    assert run.returncode != 0
    (line,) = run.stderr.strip().splitlines()
    assert "resnet55" in line
    assert "resnet50" in line
    assert "Traceback" not in run.stdout


def events(run: subprocess.CompletedProcess[str], name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert faults(lines) == []
    return [line for line in lines if line["event"] == name]


def test_why_the_engine_cannot_start_is_in_the_log_as_on_standard_error(lensgate: Run, tmp_path: Path) -> None:
    (tmp_path / "torn.pth").write_bytes(b"no weights")
    run = lensgate("serve", environment={"LENSGATE_HTTP__PORT": "0", "LENSGATE_INFERENCE__WEIGHTS": "torn.pth"})
    (failed,) = events(run, "start_failed")
    assert (failed["process"], f"lensgate: error: {failed['reason']}\n") == ("engine-0", run.stderr)
    (stopping,) = events(run, "stopping")
    assert stopping["reason"] == "engine-0 cannot start"


def test_why_nothing_was_started_is_in_the_log_as_on_standard_error(lensgate: Run) -> None:
    run = lensgate("serve", environment={"LENSGATE_HTTP__PORT": "0", "LENSGATE_INFERENCE__WEIGHTS": "nowhere.pth"})
    (failed,) = events(run, "start_failed")
    assert (failed["process"], f"lensgate: error: {failed['reason']}") == ("supervisor", error_of(run))


def test_a_taken_port(lensgate: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = error_of(lensgate("serve", environment={"LENSGATE_HTTP__PORT": str(port)}))
    assert f"127.0.0.1 port {port}" in line
    assert "taken" in line
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_keys_folder(lensgate: Run, tmp_path: Path) -> None:
    # A folder below a file cannot be made by anyone, root included.
    (tmp_path / "file").touch()
    line = error_of(lensgate("serve", environment={"LENSGATE_HTTP__PORT": "0", "LENSGATE_SECURITY__KEYS_DIR": "file/keys"}))
    assert "keys folder" in line


def test_a_key_file_that_is_no_key_is_told_before_anything_is_started(lensgate: Run, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o700)
    (tmp_path / "keys" / "broken.pem").write_text("nothing")
    (tmp_path / "keys" / "broken.pem").chmod(0o600)
    run = lensgate("serve", environment={"LENSGATE_HTTP__PORT": "0"})
    assert "'broken.pem' is not an unencrypted PEM private key" in error_of(run)
    assert [line["event"] for line in map(json.loads, run.stdout.splitlines())] == ["start_failed"]


def test_a_database_in_a_folder_that_is_not_there(lensgate: Run) -> None:
    url = "sqlite+aiosqlite:///nowhere/lensgate.db"
    assert "nowhere" in error_of(lensgate("serve", environment={"LENSGATE_HTTP__PORT": "0", "LENSGATE_SECURITY__DATABASE_URL": url}))


def test_a_certificate_that_is_none(lensgate: Run, tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("nothing")
    settings = {"LENSGATE_HTTP__PORT": "0", "LENSGATE_HTTP__TLS_CERT": "cert.pem", "LENSGATE_HTTP__TLS_KEY": "key.pem"}
    assert "LENSGATE_HTTP__TLS_CERT" in error_of(lensgate("serve", environment=settings))
    run = lensgate("serve", environment={"LENSGATE_HTTP__TLS_CERT": "cert.pem"})
    assert "LENSGATE_HTTP__TLS_KEY: goes together with LENSGATE_HTTP__TLS_CERT" in run.stderr


def test_a_model_and_weights_that_do_not_go_together_are_told_before_anything_is_started(lensgate: Run) -> None:
    settings = {"LENSGATE_INFERENCE__MODEL": "efficientnet_lite0", "LENSGATE_INFERENCE__WEIGHTS": "DEFAULT"}
    assert "WEIGHTS=package:efficientnet_lite0 go together" in lensgate("config", "check", environment=settings).stderr
    assert "WEIGHTS=package:efficientnet_lite0 go together" in lensgate("serve", environment=settings).stderr


def test_a_client_from_its_making_to_its_end(lensgate: Run) -> None:
    made = lensgate("clients", "create", "my app", "--scope", "predict", "--scope", "metrics", "--json")
    created = json.loads(made.stdout)
    assert set(created) == {"client_id", "client_secret", "name", "scopes", "tier"}
    assert (created["name"], created["scopes"], created["tier"]) == ("my app", ["predict", "metrics"], "standard")
    shown = lensgate("clients", "show", "my app")
    assert created["client_id"] in shown.stdout
    assert created["client_secret"] not in shown.stdout
    assert "old secret" not in shown.stdout
    (made_at,) = re.findall(r"^created_at +(.+)$", shown.stdout, re.MULTILINE)
    epoch_s = json.loads(lensgate("clients", "show", "my app", "--json").stdout)["created_at"]
    assert datetime.strptime(made_at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp() == epoch_s
    assert "already" in error_of(lensgate("clients", "create", "my app", "--scope", "predict"))
    rotated = json.loads(lensgate("clients", "rotate-secret", created["client_id"], "--json").stdout)
    assert rotated["client_secret"] != created["client_secret"]
    (until,) = re.findall(r"^old secret +works until (.+)$", lensgate("clients", "show", "my app").stdout, re.MULTILINE)
    assert until > made_at
    assert lensgate("clients", "rotate-secret", "my app", "--overlap-s", "0").returncode == 0
    assert "old secret" not in lensgate("clients", "show", "my app").stdout
    tiers = {name: {"images": "9/second", "in_flight": 9} for name in ("standard", "gold")}
    gold = {"LENSGATE_SECURITY__TIERS": json.dumps(tiers)}
    assert lensgate("clients", "set-tier", "my app", "gold", environment=gold).stdout == "my app has the tier gold.\n"
    assert json.loads(lensgate("clients", "show", "my app", "--json").stdout)["tier"] == "gold"
    assert lensgate("clients", "disable", "my app").returncode == 0
    assert [one["disabled_at"] is None for one in json.loads(lensgate("clients", "list", "--json").stdout)] == [False]
    assert lensgate("clients", "enable", "my app").returncode == 0
    assert lensgate("clients", "delete", "my app").returncode == 0
    assert json.loads(lensgate("clients", "list", "--json").stdout) == []
    assert "no such client" in error_of(lensgate("clients", "show", "my app"))


def test_an_unknown_tier_is_refused_by_name(lensgate: Run) -> None:
    assert "no tier 'gold'" in error_of(lensgate("clients", "create", "app", "--scope", "predict", "--tier", "gold"))
    assert "no tier 'gold'" in error_of(lensgate("clients", "set-tier", "app", "gold"))


def test_an_encrypted_key_is_called_by_its_name(lensgate: Run, tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (tmp_path / "key.pem").write_bytes(encrypted)
    settings = {"LENSGATE_HTTP__PORT": "0", "LENSGATE_HTTP__TLS_CERT": "cert.pem", "LENSGATE_HTTP__TLS_KEY": "key.pem"}
    assert "the key is encrypted" in error_of(lensgate("serve", environment=settings))


def test_an_unknown_scope_is_refused_by_name(lensgate: Run) -> None:
    line = error_of(lensgate("clients", "create", "app", "--scope", "predict,everything"))
    assert "There is no scope 'everything': a client needs one or more of the scopes predict, metrics, introspect." in line
    assert "A client needs one or more of the scopes" in error_of(lensgate("clients", "create", "app", "--scope", ""))


@pytest.mark.parametrize("scopes", [["predict metrics"], ["metrics,predict"], ["metrics", "predict"], ["predict, metrics", "predict"]])
def test_scopes_are_told_as_people_write_lists(lensgate: Run, scopes: list[str]) -> None:
    made = lensgate("clients", "create", "app", *[part for scope in scopes for part in ("--scope", scope)], "--json")
    assert json.loads(made.stdout)["scopes"] == ["predict", "metrics"]


COMMANDS = [
    ["serve"],
    ["demo"],
    ["clients", "create"],
    ["clients", "list"],
    ["clients", "show"],
    ["clients", "rotate-secret"],
    ["clients", "set-tier"],
    ["clients", "disable"],
    ["clients", "enable"],
    ["clients", "delete"],
    ["keys", "list"],
    ["keys", "rotate"],
    ["keys", "prune"],
    ["tokens", "revoke"],
    ["weights", "fetch"],
    ["config", "check"],
    ["db", "upgrade"],
]


GROUPS: list[list[str]] = [[], ["clients"], ["keys"], ["tokens"], ["weights"], ["config"], ["db"]]


@pytest.mark.parametrize("command", COMMANDS + GROUPS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(command: list[str]) -> None:
    run = CliRunner().invoke(app, [*command, "--help"])
    assert run.exit_code == 0
    _, example = " ".join(run.stdout.split()).split("Example: ")
    assert f"lensgate {' '.join(command)}" in example


def use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The exit code of the command line, and what it wrote on its two streams."""
    monkeypatch.setattr(sys, "argv", ["lensgate", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    code = end.value.code or 0
    assert isinstance(code, int)
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["serve", "--bogus"], "No such option: --bogus; see lensgate serve --help"),
        (["serve", "more"], "Got unexpected extra argument(s) (more); see lensgate serve --help"),
        (["sreve"], "No such command 'sreve'. Did you mean 'serve'?; see lensgate --help"),
        (["clients", "create"], "Missing argument 'name'; see lensgate clients create --help"),
        (["clients", "create", "x"], "Missing option '--scope'; see lensgate clients create --help"),
        (
            ["clients", "rotate-secret", "x", "--overlap-s", "-1"],
            "Invalid value for '--overlap-s': Input should be greater than or equal to 0; see lensgate clients rotate-secret --help",
        ),
        (
            ["keys", "rotate", "--algorithm", "none"],
            "Invalid value for '--algorithm': 'none' is not one of 'ES256', 'RS256'; see lensgate keys rotate --help",
        ),
    ],
)
def test_a_wrong_use_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], what: str
) -> None:
    assert use(monkeypatch, capsys, *arguments) == (2, "", f"lensgate: error: {what}\n")


def test_help_and_version_are_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = use(monkeypatch, capsys, "-h")
    assert (code, shown) == use(monkeypatch, capsys, "--help")[:2]
    assert code == 0
    assert use(monkeypatch, capsys, "serve", "-h")[0] == 0
    # A group alone is no command, but whoever types it wants to know what there is.
    code, _, explained = use(monkeypatch, capsys)
    assert (code, explained) == (2, shown)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert use(monkeypatch, capsys, "--version") == (0, f"lensgate {project['version']}\n", "")


def test_the_list_of_commands_above_is_whole() -> None:
    named = [[command.name or command.callback.__name__] for command in app.registered_commands if command.callback]
    assert sorted(str(group.name) for group in app.registered_groups) == sorted(group for names in GROUPS for group in names)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        named += [[str(group.name), str(command.name)] for command in group.typer_instance.registered_commands]
    assert sorted(named) == sorted(COMMANDS)


def test_weights_fetch_says_where_they_are(lensgate: Run) -> None:
    run = lensgate("weights", "fetch", environment=PACKAGED)
    assert run.returncode == 0, run.stderr
    assert "The weights are at" in run.stdout
