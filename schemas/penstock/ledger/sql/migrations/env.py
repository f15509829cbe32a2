"""Alembic's entry: runs the migrations on the connection that `upgrade()` hands over."""

from __future__ import annotations

from alembic import context

from penstock.ledger.sql.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table="penstock_alembic_version",
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
