"""The settings of the section `LENSGATE_SECURITY__`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

from security.issuer_profiles import MAX_TRUSTED_ISSUERS, TrustedIssuer, check_distinct
from security.rate_limits import check_storage_url
from security.tiers import TierSettings, check_tiers


class SecuritySettings(BaseModel):
    """Tokens, keys and the client registry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s?#]+$",
        description="The `iss` of our tokens: the URL at which clients reach this service (RFC 8414). Unset: made from host and port.",
    )
    audience: str = Field(default="lensgate", min_length=1, max_length=255, description="The `aud` that a token must carry.")
    token_ttl_s: int = Field(default=600, ge=1, le=86_400, description="How long an access token lives, in seconds: 1 to 86400.")
    clock_skew_s: int = Field(default=30, ge=0, le=300, description="How far another clock may be ahead of ours, in seconds.")
    keys_dir: Path = Field(default=Path("keys"), description="The folder of signing keys, one PEM file each.")
    database_url: SecretStr = Field(
        default=SecretStr("sqlite+aiosqlite:///lensgate.db"),
        description="The client registry: a SQLAlchemy async URL (sqlite+aiosqlite:///..., postgresql+asyncpg://...).",
    )
    poll_s: float = Field(
        default=2.0,
        ge=0.1,
        le=60,
        description="How often keys, disabled clients and revocations are read again: the staleness of a refusal, in seconds.",
    )

    trusted_issuers: tuple[TrustedIssuer, ...] = Field(
        default=(),
        max_length=MAX_TRUSTED_ISSUERS,
        description="Outside identity providers whose access tokens are good here too: a JSON list of profiles (docs/trusted-issuers.md).",
    )

    rate_limit_storage: SecretStr = Field(
        default=SecretStr("memory://"),
        description="Where limits are counted: memory:// for all workers of one service, redis://... or rediss://... for several replicas.",
    )
    tiers: dict[str, TierSettings] = Field(
        default={"standard": TierSettings(images="600/minute", in_flight=16)},
        validate_default=True,
        max_length=64,
        description="What the clients of each tier may ask for, as JSON: pictures in a window, and requests at once in each worker.",
    )

    @field_validator("rate_limit_storage")
    @classmethod
    def _is_a_storage_we_know(cls, value: SecretStr) -> SecretStr:
        check_storage_url(value.get_secret_value())
        return value

    @field_validator("tiers")
    @classmethod
    def _have_what_clients_have(cls, value: dict[str, TierSettings]) -> dict[str, TierSettings]:
        check_tiers(value)
        return value

    @field_validator("trusted_issuers")
    @classmethod
    def _are_distinct(cls, value: tuple[TrustedIssuer, ...]) -> tuple[TrustedIssuer, ...]:
        return check_distinct(value)

    # At the last one of the two, so that it is checked beside whatever else is bad.
    @field_validator("tiers")
    @classmethod
    def _have_what_issuers_have(cls, value: dict[str, TierSettings], info: ValidationInfo) -> dict[str, TierSettings]:
        for one in info.data.get("trusted_issuers", ()):
            if one.tier not in value:
                raise ValueError(f"must have {one.tier!r}, the tier of {one.name!r} in LENSGATE_SECURITY__TRUSTED_ISSUERS")
        return value

    @field_validator("database_url")
    @classmethod
    def _is_a_database_we_know(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("sqlite+aiosqlite:///", "postgresql+asyncpg://")):
            raise ValueError("must begin with sqlite+aiosqlite:/// or postgresql+asyncpg://")
        return value
