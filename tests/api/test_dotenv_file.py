"""What is wrong with a .env file is told in one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.settings import ConfigurationError, load_settings


def test_a_dotenv_file_that_is_no_utf8_stops_the_start_without_showing_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_bytes(b"LENSGATE_LOG__LEVEL=hunter2\xff\n")
    with pytest.raises(ConfigurationError, match=r"\.env cannot be read: it is no UTF-8 text") as refusal:
        load_settings()
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    "line",
    [
        "LENSGATE_HTTP__TLS_CERT /etc/hunter2.pem",
        "LENSGATE_HTTP__TLS_CERT: /etc/hunter2.pem",
        'LENSGATE_SECURITY__AUDIENCE="hunter2',
        "LENSGATE_HTTP__TLS_CERT",
        "hunter2 and nothing else",
    ],
)
def test_a_line_that_gives_nothing_a_value_stops_the_start_without_being_shown(
    line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text(f"# ours\n\nLENSGATE_HTTP__PORT=many\n{line}\n")
    with pytest.raises(ConfigurationError, match=r"\.env, line 4: must be NAME=value\n  LENSGATE_HTTP__PORT: ") as refusal:
        load_settings()
    assert "hunter2" not in str(refusal.value)


def test_the_forms_that_are_usual_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("# a comment\n\nexport LENSGATE_HTTP__PORT=8123 # another\nLENSGATE_SECURITY__AUDIENCE='of two words'\nOTHER\n")
    settings = load_settings()
    assert (settings.http.port, settings.security.audience) == (8123, "of two words")


def test_a_folder_or_a_link_to_nowhere_in_its_place_stops_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").symlink_to("nowhere")
    with pytest.raises(ConfigurationError, match=r"\.env cannot be read: No such file"):
        load_settings()
    Path(".env").unlink()
    Path(".env").mkdir()
    with pytest.raises(ConfigurationError, match=r"\.env cannot be read: Is a directory"):
        load_settings()
