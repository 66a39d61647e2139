"""The settings: read once, frozen, strict, and documented."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli import app
from api.effective_settings import effective
from api.http_settings import HttpSettings
from api.settings import ConfigurationError, LogSettings, Settings, load_settings
from inference.settings import InferenceSettings
from security.settings import SecuritySettings

EXAMPLE = Path(__file__).parents[2] / ".env.example"


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the person who runs the tests, and no .env."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LENSGATE_")]:
        monkeypatch.delenv(name)


def test_the_example_names_every_setting_once_and_no_other() -> None:
    named = re.findall(r"^(?:# )?(LENSGATE_[A-Z0-9_]+)=", EXAMPLE.read_text(), re.MULTILINE)
    assert sorted(named) == sorted(effective(Settings()))


def test_the_example_shows_the_defaults() -> None:
    shown = dict(re.findall(r"^(LENSGATE_[A-Z0-9_]+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE))
    defaults = effective(load_settings())
    assert {name: value.lower() for name, value in shown.items()} == {name: defaults[name].lower() for name in shown}
    # What is commented out has no default of its own, or hangs on another setting.
    assert {name for name in defaults.keys() - shown.keys() if defaults[name]} == {"LENSGATE_HTTP__MAX_BODIES_BYTES"}


def test_the_example_can_be_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(EXAMPLE.read_text())
    assert effective(load_settings()) == effective(Settings())


def test_every_setting_says_what_it_is_for() -> None:
    for section in (HttpSettings, SecuritySettings, InferenceSettings, LogSettings):
        assert [name for name, field in section.model_fields.items() if not (field.description or "").endswith((".", ")"))] == []


def test_a_bad_value_is_named_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSGATE_SECURITY__DATABASE_URL", "postgres://u:hunter2@h/d")
    with pytest.raises(ConfigurationError, match="LENSGATE_SECURITY__DATABASE_URL: ") as refusal:
        load_settings()
    assert "hunter2" not in str(refusal.value)


def problems() -> list[str]:
    """What the message lists."""
    with pytest.raises(ConfigurationError) as refusal:
        load_settings()
    heading, *lines = str(refusal.value).splitlines()
    assert heading == "the settings are not usable:"
    assert all(line.startswith("  LENSGATE_") for line in lines)
    return [line.strip() for line in lines]


@pytest.mark.parametrize("in_file", [False, True])
def test_every_bad_setting_is_listed_whatever_is_bad_about_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_file: bool) -> None:
    settings = {
        "LENSGATE_HTTP__PORT": "many",
        "LENSGATE_HTTP__TLS_CERT": "cert.pem",
        "LENSGATE_HTTP__MAX_BODIES_BYTES": "4096",
        "LENSGATE_HTTP__GRACE_S": "10",
        "LENSGATE_HTTP__DRAIN_PAUSE_S": "10",
        "LENSGATE_SECURITY__TRUSTED_ISSUERS": "nope",
        "LENSGATE_SECURITY__TIERS": "{bad",
        "LENSGATE_INFERENCE__WEIGHTS": "IMAGENET1K_V2",
        "LENSGATE_INFERENCE__CARD": "IMAGENET1K_V1",
        "LENSGATE_INFERENCE__MAX_BATCH": "0",
        "LENSGATE_LOG": "debug",
        "LENSGATE_LOG__FORMAT": "xml",
    }
    if in_file:
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    else:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
    assert problems() == [
        "LENSGATE_HTTP__GRACE_S: must be longer than LENSGATE_HTTP__DRAIN_PAUSE_S, which is a part of it",
        "LENSGATE_HTTP__MAX_BODIES_BYTES: must be at least twice LENSGATE_HTTP__MAX_BODY_BYTES: one client may hold half of it",
        "LENSGATE_HTTP__PORT: Input should be a valid integer, unable to parse string as an integer",
        "LENSGATE_HTTP__TLS_KEY: goes together with LENSGATE_HTTP__TLS_CERT: set both, or neither",
        "LENSGATE_INFERENCE__CARD: goes with a local weights file only; LENSGATE_INFERENCE__WEIGHTS=IMAGENET1K_V2 has its own card",
        "LENSGATE_INFERENCE__MAX_BATCH: Input should be greater than or equal to 1",
        "LENSGATE_LOG: no such setting; did you mean LENSGATE_LOG__LEVEL?",
        "LENSGATE_LOG__FORMAT: Input should be 'auto', 'json' or 'text'",
        "LENSGATE_SECURITY__TIERS: must be a JSON object",
        "LENSGATE_SECURITY__TRUSTED_ISSUERS: must be a JSON list",
    ]


def test_the_environment_wins_over_the_dotenv_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LENSGATE_HTTP__PORT=1\nLENSGATE_HTTP__WORKERS=3\n")
    monkeypatch.setenv("LENSGATE_HTTP__PORT", "2")
    settings = load_settings()
    assert (settings.http.port, settings.http.workers) == (2, 3)


def test_an_empty_variable_is_the_same_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in effective(Settings()):
        monkeypatch.setenv(name, "")
    assert load_settings() == Settings()
    (tmp_path / ".env").write_text("LENSGATE_HTTP__WORKERS=3\nLENSGATE_HTTP__PORT=\n")
    assert (load_settings().http.workers, load_settings().http.port) == (3, 8000)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "LENSGATE_HTTP__TLS_CERT": "c.pem",
            "LENSGATE_HTTP__TLS_KEY": "k.pem",
            "LENSGATE_HTTP__CORS_ORIGINS": "https://a.example.com,https://b.example.com",
            "LENSGATE_HTTP__TRUSTED_PROXIES": "10.0.0.0/8,192.0.2.7",
            "LENSGATE_SECURITY__TIERS": '{"standard": {"images": "9/second", "in_flight": 9}, "b": {"images": "1/hour", "in_flight": 1}}',
            "LENSGATE_SECURITY__TRUSTED_ISSUERS": (
                '[{"name": "idp", "profile": "keycloak", "issuer": "https://id.test", "audience": "gate", "jwks_url": "https://id.test/keys"}]'
            ),
            "LENSGATE_INFERENCE__WEIGHTS": "flowers.pth",
            "LENSGATE_INFERENCE__LABELS": "flowers.txt",
        },
    ],
)
def test_what_config_check_prints_is_a_dotenv_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    before = load_settings()
    (tmp_path / ".env").write_text(CliRunner().invoke(app, ["config", "check"]).stdout)
    for name in settings:
        monkeypatch.delenv(name)
    assert load_settings() == before


def test_what_a_program_gives_wins_over_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LENSGATE_LOG__LEVEL=error\n")
    monkeypatch.setenv("LENSGATE_HTTP__PORT", "2")
    given = Settings(http=HttpSettings(port=3), _env_file=None)  # type: ignore[call-arg]  # taken, but not declared in the class
    assert (given.http.port, given.log.level) == (3, "info")


def test_settings_are_frozen() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.http.port = 1


def test_a_child_gets_exactly_what_its_parent_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSGATE_SECURITY__DATABASE_URL", "postgresql+asyncpg://u:hunter2@h/d")
    settings = load_settings()
    dumped = settings.dump()
    # What changes after the start is nothing to a child.
    monkeypatch.setenv("LENSGATE_HTTP__PORT", "1")
    assert Settings.restore(dumped) == settings
    assert Settings.restore(dumped).security.database_url.get_secret_value().endswith("hunter2@h/d")


@pytest.mark.parametrize(
    ("environment", "issuer"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"LENSGATE_HTTP__HOST": "::1", "LENSGATE_HTTP__PORT": "9"}, "http://[::1]:9"),
        ({"LENSGATE_HTTP__TLS_CERT": "c", "LENSGATE_HTTP__TLS_KEY": "k"}, "https://127.0.0.1:8000"),
        ({"LENSGATE_SECURITY__ISSUER": "https://gate.example.com/"}, "https://gate.example.com"),
    ],
)
def test_the_issuer_is_where_clients_reach_us(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], issuer: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings().issuer == issuer


@pytest.mark.parametrize(
    ("host", "is_loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("gate", False)]
)
def test_loopback_is_known(monkeypatch: pytest.MonkeyPatch, host: str, is_loopback: bool) -> None:
    monkeypatch.setenv("LENSGATE_HTTP__HOST", host)
    assert load_settings().http.is_loopback is is_loopback


@pytest.mark.parametrize(("host", "is_every"), [("0.0.0.0", True), ("::", True), ("127.0.0.1", False), ("gate", False)])
def test_every_interface_is_known(host: str, is_every: bool) -> None:
    assert HttpSettings(host=host).is_every_interface is is_every


def test_a_drain_pause_as_long_as_the_grace_period_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSGATE_HTTP__DRAIN_PAUSE_S", "10")
    monkeypatch.setenv("LENSGATE_HTTP__GRACE_S", "10")
    with pytest.raises(ConfigurationError, match="GRACE_S: must be longer than LENSGATE_HTTP__DRAIN_PAUSE_S"):
        load_settings()


def test_one_client_alone_must_be_able_to_send_the_largest_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSGATE_HTTP__MAX_BODIES_BYTES", str(2 * HttpSettings().max_body_bytes - 1))
    with pytest.raises(ConfigurationError, match="MAX_BODIES_BYTES: must be at least twice LENSGATE_HTTP__MAX_BODY_BYTES"):
        load_settings()


@pytest.mark.parametrize(("body_bytes", "bodies_bytes"), [(1024, 256 << 20), (128 << 20, 256 << 20), ((128 << 20) + 1, (256 << 20) + 2)])
def test_room_for_two_bodies_comes_with_their_size(monkeypatch: pytest.MonkeyPatch, body_bytes: int, bodies_bytes: int) -> None:
    monkeypatch.setenv("LENSGATE_HTTP__MAX_BODY_BYTES", str(body_bytes))
    assert load_settings().http.max_bodies_bytes == bodies_bytes


def test_a_bad_size_of_a_body_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSGATE_HTTP__MAX_BODY_BYTES", "1")
    assert problems() == ["LENSGATE_HTTP__MAX_BODY_BYTES: Input should be greater than or equal to 1024"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+asyncpg://u:hunter:2@h:port/d", "***"),
        ("postgresql+asyncpg://u:hun@ter2@h/d", "***"),
        ("postgresql+asyncpg://u:hun/te@r2@h/d", "***"),
        ("postgresql+asyncpg://u:hun?te@r2@h/d", "***"),
        ("postgresql+asyncpg://h:1/d?password=hun@ter2", "***"),
        ("postgresql+asyncpg://u:hun%40ter2@h/d?sslmode=require", "postgresql+asyncpg://u:***@h/d?sslmode=require"),
        ("postgresql+asyncpg://h/d?password=hunter2", "postgresql+asyncpg://h/d?password=%2A%2A%2A"),
        ("postgresql+asyncpg:///d?password=hun@ter2", "postgresql+asyncpg:///d?password=%2A%2A%2A"),
        ("sqlite+aiosqlite:////srv/a@b/c@d.db", "sqlite+aiosqlite:////srv/a%40b/c%40d.db"),
    ],
)
def test_no_part_of_a_databases_password_is_shown(monkeypatch: pytest.MonkeyPatch, url: str, shown: str) -> None:
    monkeypatch.setenv("LENSGATE_SECURITY__DATABASE_URL", url)
    assert effective(load_settings())["LENSGATE_SECURITY__DATABASE_URL"] == shown


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("LENSGATE_FOO", ""),
        ("lensgate_foo", ""),
        ("LENSGATE_HTTP_PORT", "LENSGATE_HTTP__PORT"),
        ("LENSGATE_HTTP__PROT", "LENSGATE_HTTP__PORT"),
        ("LENSGATE_SECURITY__PORT", "LENSGATE_HTTP__PORT"),
        ("LENSGATE_PORT", "LENSGATE_HTTP__PORT"),
        ("LENSGATE_DATABASEURL", "LENSGATE_SECURITY__DATABASE_URL"),
        ("LENSGATE_HTTP__SERVICE_HOST", "LENSGATE_HTTP__HOST"),
        ("LENSGATE__PORT", "LENSGATE_HTTP__PORT"),
    ],
)
@pytest.mark.parametrize("value", ["9000", ""])
def test_a_name_that_is_no_setting_stops_the_start_with_the_nearest_that_is(
    monkeypatch: pytest.MonkeyPatch, name: str, hint: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert problems() == [f"{name.upper()}: no such setting" + (f"; did you mean {hint}?" if hint else "")]


KUBERNETES = {
    f"LENSGATE{service}_{name}": value
    for service in ("", "_METRICS", "_HTTP", "_A_2")
    for name, value in {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "SERVICE_PORT_WEB_2": "8000",
        "PORT": "tcp://10.0.0.1:8000",
        "PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "PORT_8000_TCP_PROTO": "tcp",
        "PORT_8000_TCP_PORT": "8000",
        "PORT_8000_TCP_ADDR": "10.0.0.1",
        "PORT_53_UDP_ADDR": "10.0.0.1",
        "PORT_9_SCTP": "sctp://10.0.0.1:9",
    }.items()
}


def test_names_that_kubernetes_injects_are_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KUBERNETES.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == Settings()


def test_kubernetes_injects_nothing_into_a_dotenv_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in KUBERNETES.items()))
    assert [problem.partition(":")[0] for problem in problems()] == sorted(KUBERNETES)


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0", "::ffff:0.0.0.0/96", "10.0.0.0/8,0.0.0.0/0"])
def test_proxies_at_every_address_are_refused(monkeypatch: pytest.MonkeyPatch, network: str) -> None:
    monkeypatch.setenv("LENSGATE_HTTP__TRUSTED_PROXIES", network)
    with pytest.raises(ConfigurationError, match="must not be every address"):
        load_settings()
