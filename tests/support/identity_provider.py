"""Starts other issuers in a process of their own, and gives them orders: which token to make, when to rotate keys, how to misbehave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

AUDIENCES = {
    "keycloak": "lensgate",
    "auth0": "https://gate.example.com/",
    "entra": "c7d0a7a2-5f0e-4a37-8c1b-0d9f3f1e2b11",
    "standard": "lensgate",
}
PRESETS = {"keycloak": "keycloak", "auth0": "auth0", "entra": "entra", "standard": "rfc9068"}
PROVIDERS = tuple(AUDIENCES)
SECRET = "the provider's own secret"


class IdentityProvider:
    """Keycloak, Auth0, Entra and a provider after RFC 9068, on one port of loopback."""

    def __init__(self, port: int = 0) -> None:
        self.port = port

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "support.identity_provider_process", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        assert self.process.stdout is not None
        try:
            self.port = int(self.process.stdout.readline())
            self.url = f"http://127.0.0.1:{self.port}"
            self.issuers: dict[str, str] = self.order("issuers")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, _: type[BaseException] | None = None, __: BaseException | None = None, ___: TracebackType | None = None) -> None:
        self.process.terminate()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def order(self, action: str, **order: object) -> Any:  # noqa: ANN401 - JSON
        """Give the process an order, and return its answer."""
        return httpx.post(f"{self.url}/control", json={"action": action, **order}, timeout=30).raise_for_status().json()

    def token(self, provider: str, **order: object) -> str:
        """A token of a provider, an access token unless `kind` says otherwise; with other `claims` or `header`, or `without` some."""
        return str(self.order("token", provider=provider, **order))

    def client_credentials(self, provider: str, scope: str = "predict") -> str:
        """A token as a client app of that provider gets it."""
        form = {"grant_type": "client_credentials", "client_id": "camera", "client_secret": SECRET, "scope": scope}
        return str(httpx.post(f"{self.url}/{provider}/token", data=form, timeout=30).raise_for_status().json()["access_token"])

    def jwks_url(self, provider: str) -> str:
        """Where that provider's keys are."""
        return f"{self.url}/{provider}/jwks"

    def profile(self, provider: str, **changes: object) -> dict[str, Any]:
        """What an operator writes into TRUSTED_ISSUERS for that provider."""
        return {
            "name": provider,
            "profile": PRESETS[provider],
            "issuer": self.issuers[provider],
            "audience": AUDIENCES[provider],
            "jwks_url": self.jwks_url(provider),
            "algorithms": ["ES256" if provider == "standard" else "RS256"],
            **changes,
        }
