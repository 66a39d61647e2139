"""Alembic's entry: runs the migrations on the connection that it is given, or writes them out as SQL (`alembic upgrade head --sql`).

`security.database` gives the connection. For the `alembic` command, an ini file with `script_location = security:migrations` and
`sqlalchemy.url` is enough; that mode writes SQL only, since `lensgate db upgrade` is the way to run it.
"""

from __future__ import annotations

from alembic import context
from alembic.util.exc import CommandError

from security.tables import Base

connection = context.config.attributes.get("connection")
if context.is_offline_mode():
    context.configure(
        url=context.config.get_main_option("sqlalchemy.url"),
        target_metadata=Base.metadata,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
    )
elif connection is not None:
    # SQLite alters a table by copying it ("batch"); the caller's transaction covers it, so half a migration is never left.
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
else:
    raise CommandError("Run `lensgate db upgrade`; the alembic command only writes SQL (--sql).")
with context.begin_transaction():
    context.run_migrations()
