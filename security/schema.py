"""The registry's tables and their version. Apart from `security.database`, because Alembic is slow to load and no request needs it."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection

from security.errors import RegistryError

_NEWER = "The client registry was made by a newer version of Lensgate: run that version."


def check_version(connection: Connection) -> None:
    """Make sure that the tables are those this version knows.

    Raises:
        RegistryError: they are not; the message says what to do.
    """
    current = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory.from_config(_alembic_config())
    if current == scripts.get_current_head():
        return
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise RegistryError(_NEWER)
    raise RegistryError("The client registry's tables are out of date: run `lensgate db upgrade`.")


def migrate(connection: Connection) -> None:
    """Bring the tables to this version, making them where there are none.

    Raises:
        RegistryError: the tables were made by a newer version.
    """
    config = _alembic_config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise RegistryError(_NEWER) from error


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", "security:migrations")
    return config
