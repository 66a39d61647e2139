from __future__ import annotations

import pytest
from pydantic import ValidationError

from security.settings import SecuritySettings
from security.tokens import MAX_TOKEN_LIFETIME_S


def test_the_defaults_are_good() -> None:
    assert SecuritySettings().audience == "lensgate"


def test_the_password_of_the_database_is_not_shown() -> None:
    settings = SecuritySettings.model_validate({"database_url": "postgresql+asyncpg://user:hunter2@host/name"})
    assert "hunter2" not in repr(settings) + settings.model_dump_json()


def test_a_token_can_be_set_to_live_for_a_second() -> None:
    assert SecuritySettings(token_ttl_s=1).token_ttl_s == 1
    with pytest.raises(ValidationError):
        SecuritySettings(token_ttl_s=0)


def test_no_token_can_be_set_to_live_longer_than_the_verifier_allows() -> None:
    assert SecuritySettings(token_ttl_s=MAX_TOKEN_LIFETIME_S).token_ttl_s == MAX_TOKEN_LIFETIME_S
    with pytest.raises(ValidationError):
        SecuritySettings(token_ttl_s=MAX_TOKEN_LIFETIME_S + 1)


@pytest.mark.parametrize("issuer", ["gate.test", "ftp://gate.test", "https://gate.test?x", "https://gate.test#x", "https://a b", ""])
def test_an_issuer_that_is_no_plain_url_is_refused(issuer: str) -> None:
    with pytest.raises(ValidationError):
        SecuritySettings(issuer=issuer)
