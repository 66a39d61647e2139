"""Whether traces go out, as OpenTelemetry's own environment variables say; the extra `otel` sends them. See docs/traces.md."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from api.settings import ConfigurationError

if TYPE_CHECKING:  # without an endpoint nothing of OpenTelemetry is loaded
    from api.otlp_tracer import OtlpTracer

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HTTP: Final = "http/protobuf"
_EXPORTERS: Final = "OTEL_TRACES_EXPORTER"
_NEEDED: Final = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")


def check_tracing(environment: Mapping[str, str]) -> None:
    """Refuse what would send no traces although somebody has asked for them.

    Raises:
        ConfigurationError: the extra is not installed, or a variable asks for what it does not do. The message shows no value.
    """
    if not _is_on(environment):
        return
    endpoint = next(name for name in _ENDPOINTS if environment.get(name))
    try:
        parts = urlsplit(environment[endpoint])
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(f"{endpoint} must be the URL of an OTLP/HTTP receiver, such as http://localhost:4318")
    for name in _PROTOCOLS:
        if environment.get(name, _HTTP) not in {"", _HTTP}:
            raise ConfigurationError(f"{name} must be {_HTTP}: no other is sent")
    if environment.get(_EXPORTERS, "otlp") not in {"", "otlp"}:
        raise ConfigurationError(f"{_EXPORTERS} must be otlp or none")
    if not all(map(_is_installed, _NEEDED)):
        missing = "what sends them, the extra otel, is not installed. In a checkout: make install"
        raise ConfigurationError(f"{endpoint} asks for traces, but {missing}")


def tracer_for(process: str, environment: Mapping[str, str]) -> OtlpTracer | None:
    """The tracer of this process; None where no traces go out."""
    if not _is_on(environment):
        return None
    from api.otlp_tracer import OtlpTracer

    return OtlpTracer(process, environment)


def _is_on(environment: Mapping[str, str]) -> bool:
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get(_EXPORTERS) == "none"
    return not disabled and any(environment.get(name) for name in _ENDPOINTS)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it would be in
        return False
