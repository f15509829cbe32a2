"""Migrations of the ledger's tables: `penstock db upgrade`."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from penstock.ledger.sql.database import Database

VERSION_TABLE = "penstock_alembic_version"


def upgrade(database: Database) -> str:
    """Run the missing migrations and return the revision. Several processes may do this at once."""
    config = _config()

    def run_migrations(connection: sa.Connection) -> None:
        if database.dialect == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(724377)"))
        elif database.dialect in ("mysql", "mariadb"):
            connection.execute(sa.text("SELECT GET_LOCK('penstock_upgrade', 60)"))
        try:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        finally:
            if database.dialect in ("mysql", "mariadb"):
                connection.execute(sa.text("SELECT RELEASE_LOCK('penstock_upgrade')"))

    database.write(run_migrations)
    return head()


def head() -> str:
    """The revision that this code needs."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def current(database: Database) -> str | None:
    """The revision of the database; None if it holds no ledger yet."""

    def read_revision(connection: sa.Connection) -> str | None:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return context.get_current_revision()

    return database.read(read_revision)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
