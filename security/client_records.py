"""What the client registry tells of its clients, and the rules for their names, scopes and tiers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from security.access import SCOPES
from security.errors import RegistryError

CLIENT_ID_PREFIX: Final = "client_"
STANDARD_TIER: Final = "standard"

_MAX_NAME: Final = 64
_TIER: Final = re.compile(r"[a-z0-9_-]{1,32}")


@dataclass(frozen=True, slots=True)
class Client:
    """A registered client, as operators see it."""

    client_id: str
    name: str
    scopes: tuple[str, ...]
    tier: str
    created_at: int
    """Seconds since the epoch."""
    disabled_at: int | None
    """Seconds since the epoch; None while the client may ask for tokens."""


@dataclass(frozen=True, slots=True)
class CreatedClient:
    """A new client, or one with a new secret: the only time that the secret can be seen."""

    client_id: str
    client_secret: str = field(repr=False)
    name: str
    scopes: tuple[str, ...]
    tier: str


@dataclass(frozen=True, slots=True)
class AuthenticatedClient:
    """A client that has just proved who it is, and may have a token."""

    client_id: str
    scopes: tuple[str, ...]
    tier: str


@dataclass(frozen=True, slots=True)
class RegistrySnapshot:
    """What every worker must know of the clients, as of one moment. Unknown clients are not in it: one may have been made since."""

    refused_clients: frozenset[str]
    """The ids of disabled clients, and of deleted ones for as long as a token of theirs can live."""
    revoked_tokens: frozenset[str]
    """The `jti` of every revoked token that has not expired."""
    tiers: Mapping[str, str] = field(default_factory=dict)
    """The tiers of the clients that have another than the standard one, by client id."""


def is_name(text: str) -> bool:
    """Whether a client can be called so."""
    return 0 < len(text) <= _MAX_NAME and text.isprintable()


def check_name(name: str) -> None:
    """Refuse what a new client cannot be called."""
    if not is_name(name) or name != name.strip():
        raise RegistryError(f"A client's name has 1 to {_MAX_NAME} printable characters and no space at either end.")
    if name.startswith(CLIENT_ID_PREFIX):
        raise RegistryError(f"A client's name must not begin with {CLIENT_ID_PREFIX!r}: that is how ids begin.")


def check_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """The scopes in their usual order; none, or one that does not exist, is refused."""
    asked = set(scopes)
    unknown = sorted(asked.difference(SCOPES))
    if unknown or not asked:
        raise RegistryError(
            (f"There is no scope {', '.join(map(repr, unknown))}: a" if unknown else "A")
            + f" client needs one or more of the scopes {', '.join(SCOPES)}."
        )
    return tuple(scope for scope in SCOPES if scope in asked)


def check_tier(tier: str) -> None:
    """Refuse what cannot be the name of a tier."""
    if not _TIER.fullmatch(tier):
        raise RegistryError("A tier's name has 1 to 32 of a-z 0-9 _ -.")
