"""The registry's schema, version by version (Alembic). Run by `lensgate db upgrade`."""
