"""Migrations of the ledger's tables: `penstock db upgrade`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from penstock.config.errors import ConfigError, LedgerUnavailable
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables.jobs import jobs, limit_indexes
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

    if database.dialect in ("mysql", "mariadb"):
        # To build an index may take minutes.
        with closing(Database(database.url, pool_size=1, answer_seconds=None)) as patient:
            patient.write(run_migrations)
    else:
        database.write(run_migrations)
    if database.dialect == "postgresql":
        build_indexes(database)
    return head()


def build_indexes(database: Database) -> None:
    """Build the indexes of PostgreSQL that are missing, or that an earlier call left unfinished, next to the writes of
    workers, and drop those that they replace. One that another process is building is left to it.

    Raises:
        LedgerUnavailable: those before are built; call it again.
    """
    limit_indexes(database.dialect)
    for index in sorted(jobs.indexes, key=lambda index: str(index.name)):
        state = database.read(lambda connection, name=index.name: connection.execute(_INDEX, {"name": name}).scalar())  # type: ignore[misc]
        if state in ("valid", "under way"):
            continue
        name = str(index.name)
        create = str(sa.schema.CreateIndex(index, if_not_exists=True).compile(dialect=database.engine.dialect))
        concurrently = create.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY", 1)
        for statement in ([f"DROP INDEX CONCURRENTLY IF EXISTS {name}"] if state == "broken" else []) + [concurrently]:
            database.read(lambda connection, statement=statement: connection.exec_driver_sql(statement))  # type: ignore[misc]
    for name in REPLACED:
        if database.read(lambda connection, name=name: connection.execute(_INDEX, {"name": name}).scalar()) is not None:  # type: ignore[misc]
            database.read(
                lambda connection, name=name: connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")  # type: ignore[misc]
            )


REPLACED = tuple(
    f"ix_penstock_jobs_{columns}"
    for columns in ("key", "state_due_at", "enqueued_at_id", "kind_enqueued_at_id", "tenant_enqueued_at_id")
)
"""Indexes of jobs up to revision 0008 that others have replaced."""

_INDEX = sa.text(
    """
    SELECT CASE WHEN i.indisvalid THEN 'valid' WHEN p.pid IS NOT NULL THEN 'under way' ELSE 'broken' END
    FROM pg_index i LEFT JOIN pg_stat_progress_create_index p ON p.index_relid = i.indexrelid
    WHERE i.indexrelid = to_regclass(:name)
    """
)


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
