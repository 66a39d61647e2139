"""What `serve` checks and makes before anything is started: an operator's mistake is one clear line, and nothing is half-started."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import structlog

from api.settings import ConfigurationError, Settings
from api.tls import check_tls
from api.tracing import check_tracing
from security.clients import ClientRegistry
from security.database import Database
from security.key_ring import KeyRing, publication_delay_s
from security.keys import ensure_keys
from security.rate_limits import MEMORY

_log: Final = structlog.get_logger()


async def prepare(settings: Settings) -> None:
    """Check the files that the settings name, make the signing key where that is allowed, and bring the registry up to date.

    Raises:
        ConfigurationError: a file is missing or of no use, or traces are asked for that cannot be sent.
        KeysError: the keys folder is empty (and must not be filled by us), unwritable, or holds what is no key.
        RegistryError: the database is out of reach, or its tables are out of date.
    """
    check(settings)
    url = settings.security.database_url.get_secret_value()
    is_sqlite = url.startswith("sqlite")
    created_kid = await asyncio.to_thread(ensure_keys, settings.security.keys_dir, may_create=is_sqlite)
    if created_kid is not None:
        _log.warning(
            "signing_key_created", kid=created_kid, keys_dir=str(settings.security.keys_dir), hint="keep it secret, and back it up"
        )
    # Read as the workers will: one that is no key must not be found only after they were started.
    delay_s = publication_delay_s(settings.security.poll_s)
    await asyncio.to_thread(KeyRing.load, settings.security.keys_dir, publication_delay_s=delay_s)
    database = Database(url)
    try:
        if is_sqlite:
            await database.upgrade()
        else:
            await database.check_schema()
        if not await ClientRegistry(database).list_all():
            _log.warning("no_clients", hint="make the first one: lensgate clients create my-app --scope predict")
    finally:
        await database.aclose()
    if settings.http.tls_cert is None and not settings.http.is_loopback:
        _log.warning(
            "plain_http",
            host=settings.http.host,
            hint="tokens travel in clear: set TLS_CERT and TLS_KEY, or stand behind a proxy that has them",
        )
    if settings.security.issuer is None and settings.http.is_every_interface:
        _log.warning(
            "issuer_is_no_address",
            url=settings.issuer,
            hint="tokens and metadata name an address that nobody can call: set LENSGATE_SECURITY__ISSUER to the one that clients use",
        )


def check(settings: Settings) -> None:
    """Check what can be checked without making or reaching anything.

    Raises:
        ConfigurationError: as `prepare`; the message has everything that is wrong.
    """
    complaints = [str(complaint) for complaint in _complaints(settings)]
    if len(complaints) > 1:
        raise ConfigurationError("the settings are not usable:\n  " + "\n  ".join(complaints))
    if complaints:
        raise ConfigurationError(complaints[0])


def _complaints(settings: Settings) -> Iterator[ConfigurationError]:
    checks = (
        partial(check_tls, settings.http),
        partial(_check_file, "WEIGHTS", settings.inference.weights_path),
        partial(_check_file, "LABELS", settings.inference.labels),
        partial(_check_redis_client, settings.security.rate_limit_storage.get_secret_value()),
        partial(check_tracing, os.environ),
    )
    for check_one in checks:
        try:
            check_one()
        except ConfigurationError as complaint:
            yield complaint


def _check_file(name: str, path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise ConfigurationError(f"LENSGATE_INFERENCE__{name}: there is no file {path}")


def _check_redis_client(storage_url: str) -> None:
    if storage_url != MEMORY and find_spec("redis") is None:
        raise ConfigurationError(
            "LENSGATE_SECURITY__RATE_LIMIT_STORAGE names a Redis, but its client, the extra redis, is not installed. "
            "In a checkout: make install"
        )
