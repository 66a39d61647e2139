"""The settings of the HTTP server: `LENSGATE_HTTP__*`."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from security.client_address import parse_network
from security.middleware.body_limit import DEFAULT_MAX_BODIES_BYTES
from security.middleware.cors import check_origin
from security.rate_limits import parse_limit


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
    tls_key: Path | None = Field(default=None, validate_default=True, description="The PEM private key of TLS_CERT.")
    max_body_bytes: int = Field(default=10 * 1024 * 1024, ge=1024, le=1 << 30, description="The largest request body; 413 above.")
    max_bodies_bytes: int = Field(
        default_factory=lambda data: max(DEFAULT_MAX_BODIES_BYTES, 2 * data["max_body_bytes"]),
        ge=2048,
        le=1 << 40,
        description=(
            "The most bytes of request bodies that one API worker holds at once, and half of it for one client; 503 above. "
            "Unset: 256 MiB, or twice MAX_BODY_BYTES where that is more."
        ),
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
    grace_s: float = Field(
        default=25.0, validate_default=True, gt=0, le=600, description="On SIGTERM: the most seconds until everything has ended."
    )
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

    # Checks across settings stand at the last one of them, and look at what is good of the others: so one bad value hides no other.
    @field_validator("tls_key")
    @classmethod
    def _goes_with_the_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if "tls_cert" in info.data and (info.data["tls_cert"] is None) != (value is None):
            raise ValueError("goes together with LENSGATE_HTTP__TLS_CERT: set both, or neither")
        return value

    @field_validator("grace_s")
    @classmethod
    def _has_room_for_the_pause(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("drain_pause_s", 0) >= value:
            raise ValueError("must be longer than LENSGATE_HTTP__DRAIN_PAUSE_S, which is a part of it")
        return value

    @field_validator("max_bodies_bytes")
    @classmethod
    def _has_room_for_a_body(cls, value: int, info: ValidationInfo) -> int:
        if value < 2 * info.data.get("max_body_bytes", 0):
            raise ValueError("must be at least twice LENSGATE_HTTP__MAX_BODY_BYTES: one client may hold half of it")
        return value

    @property
    def is_loopback(self) -> bool:
        """True when nobody but this machine can connect."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def is_every_interface(self) -> bool:
        """True when the address is a wildcard, which nobody can connect to by that name."""
        try:
            return ip_address(self.host).is_unspecified
        except ValueError:
            return False
