"""URLs of databases, checked before anything connects."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import ConfigError
from penstock.config.private_files import make_private_folder
from penstock.config.settings import redact_url

_FORMS = "sqlite:///path, postgresql+psycopg://user:password@host/name or mysql+pymysql://user:password@host/name"
_OURS = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
    "postgres": "postgresql+psycopg",
    "sqlite3": "sqlite",
}
"""Database → the scheme with the driver that we install; also of databases' other names."""
_ASYNC = {"aiosqlite", "asyncpg", "psycopg_async", "aiomysql", "asyncmy", "aioodbc"}


def parse_url(url: str) -> sa.URL:
    """A database's URL.

    Raises:
        ConfigError: it cannot be read, or it is for an unknown database; says how to write it.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise ConfigError(f"database_url {shown(url)!r} is not a URL; write {_FORMS}") from None
    except ValueError:
        raise ConfigError(f"database_url {shown(url)!r}: the port is not a number; write {_FORMS}") from None
    backend, _, driver = parsed.drivername.partition("+")
    if backend not in _OURS:
        raise ConfigError(f"database_url {shown(url)!r}: {backend} cannot hold a ledger; write {_FORMS}")
    if backend in ("postgres", "sqlite3") or driver in _ASYNC:
        raise _other_scheme(url, parsed)
    if backend == "sqlite" and (parsed.host or parsed.port or parsed.username):
        raise ConfigError(
            f"database_url {shown(url)!r}: a path begins after three slashes, sqlite:///folder/file.db, and an "
            "absolute one after four"
        )
    return parsed


def split_pooler(url: sa.URL) -> tuple[sa.URL, dict[str, Any]]:
    """The URL without our parameter `pgbouncer`, and arguments of psycopg's connections that follow from it.

    A pooler in transaction mode runs each transaction on another connection, and a prepared statement is on one only.

    Raises:
        ConfigError: its value is neither `true` nor `false`.
    """
    value = url.query.get("pgbouncer", "false")
    if value not in ("true", "false"):
        raise ConfigError(f"a database URL has pgbouncer={value!r}; write pgbouncer=true or leave it out")
    return url.difference_update_query(["pgbouncer"]), {"prepare_threshold": None} if value == "true" else {}


def is_behind_pooler(url: str) -> bool:
    """Whether the URL says that a pooler in transaction mode is between us and PostgreSQL."""
    return bool(split_pooler(sa.make_url(url))[1])


def without_driver(url: str, error: Exception) -> ConfigError:
    """The error for a driver that is not installed."""
    parsed = sa.make_url(url)
    if parsed.drivername != _OURS[parsed.get_backend_name()]:
        return _other_scheme(url, parsed, f" ({error})")
    extra = "postgres" if parsed.get_backend_name() == "postgresql" else "mysql"
    return ConfigError(f"database_url {shown(url)!r}: its driver is not installed ({error}); install penstock[{extra}]")


def _other_scheme(url: str, parsed: sa.URL, why: str = "") -> ConfigError:
    ours = _OURS[parsed.get_backend_name()]
    return ConfigError(f"database_url {shown(url)!r}: write {ours}:// in place of {parsed.drivername}://{why}")


def make_folder(folder: Path, url: str) -> None:
    """Make the folder of a SQLite file. Raises ConfigError: that is not possible."""
    try:
        make_private_folder(folder)
    except OSError as error:
        raise ConfigError(
            f"database_url {shown(url)!r}: the folder {folder} cannot be made: {error.strerror}"
        ) from error


def shown(url: str) -> str:
    """The URL without its password, also where it cannot be read as one."""
    try:
        return redact_url(url)
    except ValueError:
        return re.sub(r"://.*@", "://***@", url)
