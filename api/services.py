"""Everything that the routes and layers work with, put together once by the worker process."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from starlette.requests import Request

from api.metrics import Metrics
from api.settings import Settings
from inference.decoding.pool import DecodePool
from inference.engine import Engine
from security.clients import ClientRegistry
from security.key_ring import KeyStore
from security.limit_storage import RateLimiter
from security.revocation import RevocationView
from security.tiers import Tiers
from security.tokens import TokenIssuer, TokenVerifier
from security.trusted_issuers import TrustedIssuers

if TYPE_CHECKING:  # it loads OpenTelemetry
    from api.otlp_tracer import OtlpTracer


@dataclass(slots=True)
class Lifecycle:
    """What the worker process tells the routes about itself."""

    draining: bool = False
    """True from SIGTERM on: readiness is refused, predictions are still served."""


@dataclass(frozen=True)
class Services:
    """What `create_app` needs. Built, and let go of, by the worker process."""

    settings: Settings
    engine: Engine
    registry: ClientRegistry
    issuer: TokenIssuer
    verifier: TokenVerifier
    """Of our own tokens: what the OAuth endpoints ask."""
    revocations: RevocationView
    keys: KeyStore
    decoder: DecodePool
    rates: RateLimiter
    trusted_issuers: TrustedIssuers | None = None
    """Verifies our tokens and those of others; None: only ours are good."""
    metrics: Metrics = field(default_factory=Metrics)
    tracer: OtlpTracer | None = None
    """Sends the traces; None: no traces go out."""
    lifecycle: Lifecycle = field(default_factory=Lifecycle)

    @cached_property
    def tiers(self) -> Tiers:
        """What the clients of each tier may ask for."""
        return Tiers(self.settings.security.tiers)


def services_of(request: Request) -> Services:
    """The services of the app that serves this request."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services
