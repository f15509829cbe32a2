"""Bringing the ledger's tables up to date: `penstock db upgrade`."""

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
    """Run the migrations that are missing. Safe to run by several processes at once. Returns the revision."""
    config = _config()

    def run(connection: sa.Connection) -> None:
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

    database.write(run)
    return head()


def head() -> str:
    """The revision this code works with."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def current(database: Database) -> str | None:
    """The revision of the database; None: no ledger there yet."""

    def read(connection: sa.Connection) -> str | None:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return context.get_current_revision()

    return database.read(read)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
