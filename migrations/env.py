"""Alembic's entry: runs the scripts on the connection that `dicomai.store.migrate` gives it."""

from __future__ import annotations

from alembic import context

from dicomai.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
