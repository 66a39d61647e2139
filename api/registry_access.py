"""The client registry for one command of the command line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from api.log import configure_logging
from api.settings import Settings, load_settings

if TYPE_CHECKING:  # the database's library is slow to load, and most commands do without
    from security.clients import ClientRegistry

T = TypeVar("T")


def with_registry(act: Callable[[ClientRegistry], Awaitable[T]], settings: Settings | None = None, *, may_create: bool = False) -> T:
    """What `act` returns for the registry of these settings, by default this process's.

    Args:
        act: what to do.
        settings: where the registry is.
        may_create: whether a SQLite file that is not there is made: a first `clients create` on a laptop needs no command before it. Any
            other command would report success, in a folder that is not the service's, on a registry that nobody reads.

    Raises:
        ConfigurationError: the settings are not usable.
        RegistryError: the registry cannot be used, or cannot do what was asked.
    """
    from security.clients import ClientRegistry
    from security.database import Database
    from security.errors import RegistryUnavailable

    settings = settings or load_settings()
    # What is changed is logged, and that must not stand between the lines of --json.
    configure_logging(settings.log.level, settings.log.format, process="cli", stream=sys.stderr)
    url = settings.security.database_url.get_secret_value()

    async def run() -> T:
        database = Database(url)
        try:
            if not may_create:
                database.check_file()
            await (database.upgrade() if url.startswith("sqlite") else database.check_schema())
            return await act(ClientRegistry(database))
        except RegistryUnavailable as error:
            raise database.explained(error) from error
        finally:
            await database.aclose()

    return asyncio.run(run())
