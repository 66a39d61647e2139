"""All settings, read once at start from the environment (`LENSGATE_SECTION__NAME`) and from `.env`, then frozen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from inference.settings import InferenceSettings
from security.client_address import parse_network
from security.middleware.cors import check_origin
from security.rate_limits import parse_limit
from security.settings import SecuritySettings

PREFIX: Final = "LENSGATE_"
_ENV_FILE: Final = ".env"


class ConfigurationError(Exception):
    """The settings, or what they name, cannot be used; the message is for the operator and shows no secret."""


def split_list(value: object) -> object:
    """The items of a setting that is a list: divided by commas, or a JSON array. Anything but text is left as it is."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("["):
        return [item.strip() for item in value.split(",") if item.strip()]
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        raise ValueError("is no JSON array") from None


class HttpSettings(BaseModel):
    """The HTTP server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", min_length=1, description="The address to listen on. 0.0.0.0 is every interface.")
    port: int = Field(default=8000, ge=0, le=65535, description="The port to listen on. 0 takes a free one.")
    workers: int = Field(default=1, ge=1, le=64, description="How many API worker processes share the port.")
    tls_cert: Path | None = Field(default=None, description="A PEM certificate chain: HTTPS instead of HTTP. Goes with TLS_KEY.")
    tls_key: Path | None = Field(default=None, description="The PEM private key of TLS_CERT.")
    max_body_bytes: int = Field(default=10 * 1024 * 1024, ge=1024, le=1 << 30, description="The largest request body; 413 above.")
    max_bodies_bytes: int = Field(
        default=256 * 1024 * 1024,
        ge=2048,
        le=1 << 40,
        description="The most bytes of request bodies that one API worker holds at once, and half of it for one client; 503 above.",
    )
    max_batch_images: int = Field(default=64, ge=1, le=1024, description="The most pictures in one /predict/batch request.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        max_length=64,
        description="The origins whose web pages may call this API: https://app.example.com, divided by commas. None by default.",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        max_length=256,
        description="The proxies whose X-Forwarded-For is believed: addresses and networks (10.0.0.0/8), divided by commas.",
    )
    address_limit: str = Field(
        default="1200/minute",
        description="How many requests one address may send, whatever they are: IPv4 whole, IPv6 by its /64; the probes have as many.",
    )
    header_timeout_s: float = Field(
        default=10.0,
        ge=1,
        le=300,
        description="The most seconds for a request's head, from the opening of the connection or from its first byte.",
    )
    body_timeout_s: float = Field(
        default=30.0,
        ge=1,
        le=600,
        description="The most seconds for which a body may come, or an answer be taken, at less than 8 KiB a second.",
    )
    max_header_bytes: int = Field(
        default=16 * 1024, ge=1024, le=256 * 1024, description="The most bytes in the headers of a request; 431 above."
    )
    drain_pause_s: float = Field(
        default=0.0,
        ge=0,
        le=300,
        description="On SIGTERM: seconds between answering not ready and closing the port, for load balancers to notice.",
    )
    grace_s: float = Field(default=25.0, gt=0, le=600, description="On SIGTERM: the most seconds until everything has ended.")
    docs: bool = Field(default=True, description="Serve /docs and /openapi.json to anyone; else they are 404 to everybody.")

    @field_validator("cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split_list(value)

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_origin(origin) for origin in value)

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        networks = [parse_network(text) for text in value]
        if any(network.prefixlen == 0 for network in networks):
            raise ValueError("must not be every address: each caller could then choose its own in X-Forwarded-For, and the limit with it")
        return tuple(map(str, networks))

    @field_validator("address_limit")
    @classmethod
    def _is_a_limit(cls, value: str) -> str:
        parse_limit(value)
        return value

    @model_validator(mode="after")
    def _tls_goes_in_pairs(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("TLS_CERT and TLS_KEY go together")
        return self

    @model_validator(mode="after")
    def _drains_within_the_grace(self) -> Self:
        if self.drain_pause_s >= self.grace_s:
            raise ValueError("DRAIN_PAUSE_S is a part of GRACE_S and must be shorter")
        return self

    @model_validator(mode="after")
    def _has_room_for_a_body(self) -> Self:
        if self.max_bodies_bytes < 2 * self.max_body_bytes:
            raise ValueError("MAX_BODIES_BYTES must be at least twice MAX_BODY_BYTES: one client may hold half of it")
        return self

    @property
    def is_loopback(self) -> bool:
        """True when nobody but this machine can connect."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class LogSettings(BaseModel):
    """The log, on standard output."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="The least serious level that is written.")
    format: Literal["auto", "json", "text"] = Field(default="auto", description="json, text, or auto: text on a terminal, json elsewhere.")


class Settings(BaseSettings):
    """Everything that can be set. Sections belong to the package that reads them."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_file=_ENV_FILE,
        env_file_encoding="utf-8",
        extra="ignore",  # `_unknown_names` is stricter, and knows what Kubernetes injects
        frozen=True,
    )

    http: HttpSettings = HttpSettings()
    security: SecuritySettings = SecuritySettings()
    inference: InferenceSettings = InferenceSettings()
    log: LogSettings = LogSettings()

    def listening_on(self, port: int) -> Self:
        """The same settings with the port that was really taken, where PORT was 0."""
        return self.model_copy(update={"http": self.http.model_copy(update={"port": port})})

    def dump(self) -> dict[str, Any]:
        """Everything, secrets too, as JSON values: for handing it to a child process, and for nothing else."""
        values = self.model_dump(mode="json")
        for name in ("database_url", "rate_limit_storage"):
            values["security"][name] = getattr(self.security, name).get_secret_value()
        return values

    @classmethod
    def restore(cls, values: dict[str, Any]) -> Self:
        """The settings that `dump` took. The environment is not read again: a child has what the service was started with."""
        return cls.model_construct(
            http=HttpSettings.model_validate(values["http"]),
            security=SecuritySettings.model_validate(values["security"]),
            inference=InferenceSettings.model_validate(values["inference"]),
            log=LogSettings.model_validate(values["log"]),
        )

    @property
    def issuer(self) -> str:
        """The `iss` of our tokens, and the base of the metadata's URLs."""
        return self.url if self.security.issuer is None else self.security.issuer.rstrip("/")

    @property
    def over_tls(self) -> bool:
        """Whether clients reach us by HTTPS: ours, or, as an https issuer says, that of the proxy before us."""
        return self.http.tls_cert is not None or self.issuer.startswith("https://")

    @property
    def url(self) -> str:
        """Where we listen."""
        host = f"[{self.http.host}]" if ":" in self.http.host else self.http.host
        return f"{'https' if self.http.tls_cert else 'http'}://{host}:{self.http.port}"


def load_settings() -> Settings:
    """Read the settings of this process.

    Raises:
        ConfigurationError: one message that lists every unknown name and every bad value, by name and without the value.
    """
    try:
        problems = [f"{name}: no such setting" for name in _unknown_names()]
        settings = Settings()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigurationError(f"the file {_ENV_FILE} cannot be read: {reason}") from None
    except ValidationError as error:
        problems += [_describe(item["loc"], item["type"], item["msg"]) for item in error.errors(include_input=False, include_url=False)]
    except SettingsError as error:
        problems.append(f"{PREFIX}*: {str(error).splitlines()[0]}")
    else:
        if not problems:
            return settings
    raise ConfigurationError("the settings are not usable:\n  " + "\n  ".join(sorted(set(problems))))


def _describe(location: tuple[int | str, ...], kind: str, message: str) -> str:
    name = PREFIX + "__".join(str(part).upper() for part in location)
    return f"{name}: {'no such setting' if kind == 'extra_forbidden' else message}"


def _unknown_names() -> Iterator[str]:
    # Without `__` a name is none of ours: Kubernetes injects LENSGATE_PORT and LENSGATE_SERVICE_HOST beside a service called lensgate.
    sections = set(Settings.model_fields)
    names: set[str] = {*os.environ, *(dotenv_values(_ENV_FILE) if Path(_ENV_FILE).is_file() else ())}
    for name in sorted(names):
        upper = name.upper()
        if upper.startswith(PREFIX) and "__" in upper and upper.removeprefix(PREFIX).split("__", 1)[0].lower() not in sections:
            yield upper


def effective(settings: Settings) -> Mapping[str, str]:
    """Every setting with its value as text; secrets are masked."""
    return {name: _masked(getattr(getattr(settings, section), field)) for name, section, field in _walk()}


def _walk() -> Iterator[tuple[str, str, str]]:
    for section, section_field in Settings.model_fields.items():
        model = section_field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for field in model.model_fields:
            yield f"{PREFIX}{section}__{field}".upper(), section, field


def _masked(value: object) -> str:
    if isinstance(value, SecretStr):
        # Imported here: an API worker reads its settings without it.
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(value.get_secret_value())
        except (ArgumentError, ValueError):
            return "***"  # an unescaped @ or : in the password: no telling which part of it is the secret
        in_query = {name: "***" for name in url.query if "password" in name.lower()}
        return url.update_query_dict(in_query).render_as_string(hide_password=True)
    if isinstance(value, dict):
        return json.dumps({name: item.model_dump(mode="json") for name, item in value.items()})
    if isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
        return json.dumps([item.model_dump(mode="json") for item in value])
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
