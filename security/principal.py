"""Who is asking: the verified identity that the authentication layer leaves in the ASGI scope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

STATE_KEY: Final = "principal"
"""Where the identity stands: `scope["state"]["principal"]`."""


MAX_TOKEN_ID: Final = 255
"""The most characters in a token's id: what the registry can keep of a revoked one."""


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified client. Built only from a verified token's claims."""

    client_id: str
    """Unambiguous among all issuers: of another issuer it is `<name of the issuer's profile>:<its own id>`, and ours hold no colon."""
    scopes: frozenset[str]
    issuer: str
    token_id: str
    """The token's `jti`; of another issuer `<name of the issuer's profile>:<jti>`."""
    expires_at: int
    """The token's `exp`: seconds since the epoch."""
    tier: str | None = None
    """The tier that the profile of another issuer gives its clients. None for our own clients: the registry knows theirs."""
