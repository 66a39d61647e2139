"""A .env file that cannot be read is one clear line."""

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
