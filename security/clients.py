"""The client registry: who may ask for tokens, for which scopes, and what has been taken back."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog
from sqlalchemy import and_, delete, exists, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from security.client_records import (
    CLIENT_ID_PREFIX,
    STANDARD_TIER,
    AuthenticatedClient,
    Client,
    CreatedClient,
    RegistrySnapshot,
    check_name,
    check_scopes,
    check_tier,
    is_name,
)
from security.database import Database
from security.errors import RegistryError, TooManyRevocations
from security.principal import MAX_TOKEN_ID
from security.tables import ClientRow, ClientSecretRow, DeletedClientRow, RevokedTokenRow
from security.tokens import MAX_TOKEN_LIFETIME_S

SECRET_PREFIX: Final = "lgs_"  # noqa: S105 - a prefix by which secret scanners know our secrets, not a secret

MAX_CLIENTS: Final = 10_000
"""Every worker polls the refused ones into memory: at most 1 MB of them."""
MAX_REVOKED_PER_CLIENT: Final = 10_000
"""Unexpired revocations of one client, so that one client cannot fill every worker's memory. Beyond it, disable the client."""
MAX_OVERLAP_S: Final = 30 * 86_400

PRUNE_AFTER_S: Final = 86_400
"""How long what has expired is kept all the same: a wall clock that was ahead for a while must not make us forget what is still valid."""

_LIVE_SECRETS: Final = 2
_CREDENTIAL: Final = re.compile(r"[\x20-\x7e]{1,255}")
"""RFC 6749 appendix A: client ids and secrets are printable ASCII. What is not cannot be one of ours, nor go into every database."""

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class ClientRegistry:
    """The registry in the database. `clock` gives seconds since the epoch.

    Every method raises `RegistryUnavailable` when the database does not answer, and `RegistryError`, with one clear line for the
    operator, when it cannot do what was asked. A client is named by its id or by its name. What is changed is in the log, for audits.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    async def create(self, name: str, scopes: Iterable[str], tier: str = STANDARD_TIER) -> CreatedClient:
        """Register a client.

        Args:
            name: 1 to 64 printable characters, not taken yet.
            scopes: one or more of `security.access.SCOPES`.
            tier: the name of its rate limits.
        """
        check_name(name)
        granted = check_scopes(scopes)
        check_tier(tier)
        client_id = CLIENT_ID_PREFIX + secrets.token_urlsafe(16)
        secret = _new_secret()
        now = int(self._clock())
        async with self._database.session(writes=True) as session:
            if (await session.scalar(select(func.count()).select_from(ClientRow)) or 0) >= MAX_CLIENTS:
                raise RegistryError(f"There are {MAX_CLIENTS} clients already: delete some first.")
            session.add(ClientRow(client_id=client_id, name=name, scopes=" ".join(granted), tier=tier, created_at=now))
            try:
                await session.flush()
            except IntegrityError as error:
                raise RegistryError(f"There is a client called {name!r} already.") from error
            session.add(ClientSecretRow(client_id=client_id, secret_hash=_hash(secret), created_at=now))
        _log.info("client_created", client_id=client_id, client_name=name, scopes=granted, tier=tier, registry=self._database.location)
        return CreatedClient(client_id=client_id, client_secret=secret, name=name, scopes=granted, tier=tier)

    async def list_all(self) -> list[Client]:
        """Every client, oldest first."""
        async with self._database.session() as session:
            rows = await session.scalars(select(ClientRow).order_by(ClientRow.created_at, ClientRow.name))
            return [_to_client(row) for row in rows]

    async def get(self, client: str) -> Client:
        """One client."""
        async with self._database.session() as session:
            return _to_client(await _find(session, client))

    async def former_secret_ends_at(self, client_id: str) -> int | None:
        """Until when a secret that was replaced still works, in seconds since the epoch; None where none does."""
        still_works = (ClientSecretRow.client_id == client_id, ClientSecretRow.expires_at > int(self._clock()))
        async with self._database.session() as session:
            return await session.scalar(select(func.max(ClientSecretRow.expires_at)).where(*still_works))

    async def set_tier(self, client: str, tier: str) -> Client:
        """Give the client another tier of rate limits, within the poll."""
        check_tier(tier)
        async with self._database.session(writes=True) as session:
            row = await _find(session, client, for_update=True)
            row.tier = tier
            found = _to_client(row)
        _log.info("client_tier_set", client_id=found.client_id, client_name=found.name, tier=tier, registry=self._database.location)
        return found

    async def disable(self, client: str) -> Client:
        """Refuse the client new tokens at once, and its present ones within the poll. Its secrets stay for `enable`."""
        async with self._database.session(writes=True) as session:
            row = await _find(session, client, for_update=True)
            row.disabled_at = row.disabled_at or int(self._clock())
            found = _to_client(row)
        _log.info("client_disabled", client_id=found.client_id, client_name=found.name, registry=self._database.location)
        return found

    async def enable(self, client: str) -> Client:
        """Take a disabled client in again. Tokens that it had before are good again too, until they expire."""
        async with self._database.session(writes=True) as session:
            row = await _find(session, client, for_update=True)
            row.disabled_at = None
            found = _to_client(row)
        _log.info("client_enabled", client_id=found.client_id, client_name=found.name, registry=self._database.location)
        return found

    async def delete(self, client: str) -> Client:
        """Remove the client and its secrets. Its present tokens are refused within the poll."""
        async with self._database.session(writes=True) as session:
            row = await _find(session, client, for_update=True)
            session.add(DeletedClientRow(client_id=row.client_id, expires_at=int(self._clock()) + MAX_TOKEN_LIFETIME_S))
            await session.execute(delete(ClientRow).where(ClientRow.client_id == row.client_id))
            found = _to_client(row)
        _log.info("client_deleted", client_id=found.client_id, client_name=found.name, registry=self._database.location)
        return found

    async def rotate_secret(self, client: str, *, overlap_s: int) -> CreatedClient:
        """Give the client a new secret. The present one works for `overlap_s` more seconds (0 to 30 days), an older one no longer."""
        if not 0 <= overlap_s <= MAX_OVERLAP_S:
            raise RegistryError(f"The overlap is 0 to {MAX_OVERLAP_S} seconds.")
        secret = _new_secret()
        now = int(self._clock())
        async with self._database.session(writes=True) as session:
            row = await _find(session, client, for_update=True)
            secret_of_client = ClientSecretRow.client_id == row.client_id
            await session.execute(delete(ClientSecretRow).where(secret_of_client, ClientSecretRow.expires_at.is_not(None)))
            await session.execute(update(ClientSecretRow).where(secret_of_client).values(expires_at=now + overlap_s))
            session.add(ClientSecretRow(client_id=row.client_id, secret_hash=_hash(secret), created_at=now))
            found = _to_client(row)
        _log.info(
            "client_secret_rotated",
            client_id=found.client_id,
            client_name=found.name,
            overlap_s=overlap_s,
            registry=self._database.location,
        )
        return CreatedClient(client_id=found.client_id, client_secret=secret, name=found.name, scopes=found.scopes, tier=found.tier)

    async def authenticate(self, client_id: str, client_secret: str) -> AuthenticatedClient | None:
        """The client, when the secret is its own and it is not disabled; else None, without saying why.

        Every outcome takes the same work: one query, one hash, two comparisons.
        """
        well_formed = _CREDENTIAL.fullmatch(client_id) is not None
        candidate = _hash(client_secret)
        live = or_(ClientSecretRow.expires_at.is_(None), ClientSecretRow.expires_at > int(self._clock()))
        query = (
            select(ClientRow.client_id, ClientRow.scopes, ClientRow.tier, ClientRow.disabled_at, ClientSecretRow.secret_hash)
            .join(ClientSecretRow, and_(ClientSecretRow.client_id == ClientRow.client_id, live))
            .where(ClientRow.client_id == (client_id if well_formed else ""))
            .limit(_LIVE_SECRETS)
        )
        async with self._database.session() as session:
            rows = (await session.execute(query)).all()
        hashes = [row.secret_hash for row in rows] + [""] * (_LIVE_SECRETS - len(rows))
        matches = [hmac.compare_digest(candidate, known.ljust(len(candidate))) for known in hashes]
        if not any(matches) or rows[0].disabled_at is not None:
            return None
        return AuthenticatedClient(client_id=rows[0].client_id, scopes=tuple(rows[0].scopes.split(" ")), tier=rows[0].tier)

    async def revoke(self, jti: str, client_id: str, expires_at: int) -> None:
        """Refuse one token from now on, within the poll. Revoking it twice changes nothing.

        Args:
            jti: the token's id.
            client_id: the client that it was issued to.
            expires_at: the token's `exp`; the revocation is forgotten after it.
        """
        if not 0 < len(jti) <= MAX_TOKEN_ID or not jti.isprintable():
            raise RegistryError(f"A token id has 1 to {MAX_TOKEN_ID} printable characters.")
        now = int(self._clock())
        async with self._database.session(writes=True) as session:
            if await session.get(RevokedTokenRow, jti) is not None:
                return
            unexpired = select(func.count()).where(RevokedTokenRow.client_id == client_id, RevokedTokenRow.expires_at > now)
            if (await session.scalar(unexpired) or 0) >= MAX_REVOKED_PER_CLIENT:
                raise TooManyRevocations
            session.add(RevokedTokenRow(jti=jti, client_id=client_id, expires_at=expires_at, revoked_at=now))
            try:
                await session.flush()
            except IntegrityError:  # another replica has just revoked it
                await session.rollback()
                return
        _log.info("token_revoked", token_id=jti, client_id=client_id, registry=self._database.location)

    async def is_refused(self, token_id: str, client_id: str) -> bool:
        """Whether this token was revoked, or its client disabled or deleted, as of now. One query; for what must not wait for the poll."""
        refused = or_(
            exists().where(RevokedTokenRow.jti == token_id),
            exists().where(ClientRow.client_id == client_id, ClientRow.disabled_at.is_not(None)),
            exists().where(DeletedClientRow.client_id == client_id),
        )
        async with self._database.session() as session:
            return bool(await session.scalar(select(refused)))

    async def prune(self) -> int:
        """Forget what has expired by itself a day ago: revocations, deleted clients, replaced secrets. Returns how many rows went."""
        until = int(self._clock()) - PRUNE_AFTER_S
        pruned = 0
        async with self._database.session(writes=True) as session:
            for table in (RevokedTokenRow, DeletedClientRow, ClientSecretRow):
                gone = await session.execute(delete(table).where(table.expires_at <= until).returning(table.expires_at))
                pruned += len(gone.all())
        return pruned

    async def snapshot(self) -> RegistrySnapshot:
        """What must be refused now, and the tiers. Three queries, for the poll of `security.revocation`."""
        now = int(self._clock())
        disabled = select(ClientRow.client_id).where(ClientRow.disabled_at.is_not(None))
        deleted = select(DeletedClientRow.client_id).where(DeletedClientRow.expires_at > now)
        async with self._database.session() as session:
            clients = await session.scalars(disabled.union_all(deleted))
            tokens = await session.scalars(select(RevokedTokenRow.jti).where(RevokedTokenRow.expires_at > now))
            tiers = await session.execute(select(ClientRow.client_id, ClientRow.tier).where(ClientRow.tier != STANDARD_TIER))
            return RegistrySnapshot(
                refused_clients=frozenset(clients), revoked_tokens=frozenset(tokens), tiers={row.client_id: row.tier for row in tiers}
            )


async def _find(session: AsyncSession, client: str, *, for_update: bool = False) -> ClientRow:
    """By id or by name; a name never begins like an id."""
    row: ClientRow | None = None
    if is_name(client):
        query = select(ClientRow).where(or_(ClientRow.client_id == client, ClientRow.name == client))
        row = await session.scalar(query.with_for_update() if for_update else query)
    if row is None:
        raise RegistryError("There is no such client: `lensgate clients list` shows them all.")
    return row


def _to_client(row: ClientRow) -> Client:
    return Client(
        client_id=row.client_id,
        name=row.name,
        scopes=tuple(row.scopes.split(" ")),
        tier=row.tier,
        created_at=row.created_at,
        disabled_at=row.disabled_at,
    )


def _new_secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
