"""Engines for the databases that reports and syncs name, one for each URL in a worker process."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from penstock.config.errors import ConfigError
from penstock.config.settings import Settings
from penstock.ledger.sql.pools import patient_options
from penstock.ledger.sql.urls import split_pooler
from penstock.workers.handlers.resources import provides


class Databases:
    """Thread-safe; connects when first used.

    Arguments:
        most: connections to each database. Whatever needs more waits for one.
    """

    def __init__(self, most: int = 20) -> None:
        self._most = most
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()

    def engine(self, url: str) -> Engine:
        """The engine of a database.

        Raises:
            ConfigError: the URL is wrong or its driver is not installed; the message never shows the password.
        """
        with self._lock:
            if url not in self._engines:
                self._engines[url] = _make_engine(url, self._most)
            return self._engines[url]

    def close(self) -> None:
        with self._lock:
            for engine in self._engines.values():
                engine.dispose()
            self._engines.clear()


@provides
def open_databases(settings: Settings) -> Iterator[Databases]:
    databases = Databases(settings.session_connections)
    try:
        yield databases
    finally:
        databases.close()


def _make_engine(url: str, most: int) -> Engine:
    try:
        parsed, postgres_arguments = split_pooler(make_url(url))
    except ArgumentError as error:
        raise ConfigError("a database_url is not a URL; write it as postgresql+psycopg://user@host/name") from error
    options: dict[str, object] = {"pool_pre_ping": True, "pool_recycle": 1800}
    if parsed.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": 30}  # seconds to wait for another writer, the ledger's perhaps
    elif postgres_arguments:
        options["connect_args"] = postgres_arguments
    if parsed.get_backend_name() != "sqlite" or parsed.database not in (None, "", ":memory:"):
        options |= patient_options(most)
    try:
        return create_engine(parsed, json_serializer=_exact_json, **options)
    except (ImportError, NoSuchModuleError, ArgumentError) as error:
        raise ConfigError(f"database {parsed.render_as_string()}: {error}") from error


def _exact_json(value: object) -> str:
    """JSON in which a Decimal is the number it is."""
    import simplejson  # imported lazily: only workers that run syncs need it

    return str(simplejson.dumps(value, use_decimal=True, allow_nan=False))
