"""Migrations of the ledger's tables: `penstock db upgrade`."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from penstock.config.errors import ConfigError, LedgerUnavailable
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.urls import shown

VERSION_TABLE = "penstock_alembic_version"
_UNKNOWN_DATABASE = 1049
"""Of MySQL and MariaDB."""


def upgrade(database: Database) -> str:
    """Run the missing migrations and return the revision. Several processes may do this at once.

    Raises:
        ConfigError: the URL has options that its driver does not take, the database is missing, or a newer version
            has upgraded it.
        LedgerUnavailable: the database cannot be reached.
    """
    config = _config()
    _connect(database)

    def run_migrations(connection: sa.Connection) -> None:
        if database.dialect == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(724377)"))
        elif database.dialect in ("mysql", "mariadb"):
            connection.execute(sa.text("SELECT GET_LOCK('penstock_upgrade', 60)"))
        try:
            if not is_known(revision := _revision(connection)):
                raise ConfigError(
                    f"the ledger at {shown(database.url)} is at revision {revision!r}, and this version of Penstock "
                    f"knows those up to {head()}; run the newer version that has upgraded it"
                )
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
    """The revision of the database; None if it holds no ledger yet.

    Raises:
        ConfigError, LedgerUnavailable: as `upgrade`.
    """
    _connect(database)
    return database.read(_revision)


def is_known(revision: str | None) -> bool:
    """Whether this code has the migration of a revision; None: no ledger yet."""
    try:
        return revision is None or bool(ScriptDirectory.from_config(_config()).get_revision(revision))
    except CommandError:
        return False


def _revision(connection: sa.Connection) -> str | None:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def _connect(database: Database) -> None:
    """Raises ConfigError: no connection can be made with this URL. LedgerUnavailable: none can be made now."""
    where, name = shown(database.url), database.engine.url.database
    try:
        database.read(lambda connection: connection.execute(sa.text("SELECT 1")))
    except (LedgerUnavailable, sa.exc.SQLAlchemyError, TypeError) as error:
        cause = error.__cause__ if isinstance(error, LedgerUnavailable) else error
        original = getattr(cause, "orig", None) or cause or error
        # PostgreSQL's client gives no code for a connection that was refused.
        missing = f'"{name}" does not exist' in str(original) and f'role "{name}"' not in str(original)
        if missing or (original.args and original.args[0] == _UNKNOWN_DATABASE):
            raise ConfigError(
                f"there is no database {name!r} at {where}; create it (CREATE DATABASE {name}), then run: "
                "penstock db upgrade"
            ) from error
        if isinstance(error, LedgerUnavailable):
            raise
        line = next(iter(str(original).strip().splitlines()), type(original).__name__)
        raise ConfigError(f"no connection can be made to the database at {where}: {line}") from error


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
