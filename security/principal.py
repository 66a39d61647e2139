"""Who is asking: the verified identity that the authentication layer leaves in the ASGI scope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

STATE_KEY: Final = "principal"
"""Where the identity stands: `scope["state"]["principal"]`."""


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified client. Built only from a verified token's claims."""

    client_id: str
    scopes: frozenset[str]
    issuer: str
    token_id: str
    """The token's `jti`."""
    expires_at: int
    """The token's `exp`: seconds since the epoch."""
