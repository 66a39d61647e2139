"""The layer that asks every request who it is from, before a byte of its body is read. Default-deny: what is not public needs a token."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from security.access import PUBLIC, AccessTable
from security.errors import InsufficientScope, InvalidToken, MissingToken
from security.principal import STATE_KEY, Principal

_POLICY_VIOLATION = 1008  # RFC 6455 section 7.4.1


class AccessTokenVerifier(Protocol):
    """Whatever tells who a token speaks for."""

    def verify(self, token: str, now: float) -> Principal:
        """Raise `InvalidToken` unless the token is good at `now`, seconds since the epoch."""
        ...


class RevocationCheck(Protocol):
    """Whatever knows which good tokens were taken back."""

    def is_refused(self, principal: Principal) -> str | None:
        """A fixed word that says why, or None; `RegistryUnavailable` where that is not known yet."""
        ...


class AuthenticationMiddleware:
    """Lets a request through when its path is public, or when its bearer token (RFC 6750) is good and has the path's scope.

    The verified `Principal` stands in `scope["state"]["principal"]`; how long the check took, in milliseconds, in
    `scope["state"]["auth_ms"]`, and when it began, by `time.perf_counter`, in `scope["state"]["auth_began_s"]`. Refusals are raised, for
    the boundary outside to answer: `MissingToken`, `InvalidToken`, `InsufficientScope` and `RegistryUnavailable`. WebSockets are closed
    unheard, since nothing here speaks them.

    Args:
        app: the next layer.
        access: what each path asks for. A path that is not in it asks for a good token, whatever its scopes.
        verifier: tells who a token speaks for.
        revocations: knows which tokens were taken back.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: AccessTable,
        verifier: AccessTokenVerifier,
        revocations: RevocationCheck,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._app = app
        self._access = access
        self._verifier = verifier
        self._revocations = revocations
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        if scope["type"] == "http":
            # Never the URL rebuilt from headers: a bad Host moves its path (CVE-2026-48710).
            required = self._access.get(scope["path"])
            if required != PUBLIC:
                self._authenticate(scope, required)
        await self._app(scope, receive, send)

    def _authenticate(self, scope: Scope, required: str | None) -> None:
        state = scope.setdefault("state", {})
        state["auth_began_s"] = started_s = time.perf_counter()
        try:
            principal = self._verifier.verify(_bearer_token(scope), self._clock())
            refusal = self._revocations.is_refused(principal)
            if refusal is not None:
                raise InvalidToken(refusal)
            state[STATE_KEY] = principal
            if required is not None and required not in principal.scopes:
                raise InsufficientScope(required)
        finally:
            state["auth_ms"] = (time.perf_counter() - started_s) * 1000


def _bearer_token(scope: Scope) -> str:
    """What stands behind `Bearer` in the only Authorization header (RFC 6750 section 2.1)."""
    headers: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
    if not headers:
        raise MissingToken
    if len(headers) > 1:
        raise InvalidToken("several_headers")
    scheme, _, token = headers[0].decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        raise MissingToken
    return token.strip(" ")
