"""Wrong URLs of databases, and databases that do not fit, are refused in one line that says what to do."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.ledgers import set_up

from penstock.config.errors import ConfigError, PenstockError
from penstock.ledger.sql import upgrade
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import VERSION_TABLE
from penstock.ledger.sql.urls import parse_url


def refused(url: str) -> str:
    """The message of the error for a URL: one line, without the password."""
    with pytest.raises(PenstockError) as caught, closing(Database(url)) as database:
        upgrade.upgrade(database)
    message = str(caught.value)
    assert "\n" not in message
    assert "hidden" not in message
    return message


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgres://ada:hidden@db/shop", "write postgresql+psycopg:// in place of postgres://"),
        ("postgresql+asyncpg://ada:hidden@db/shop", "write postgresql+psycopg:// in place of postgresql+asyncpg://"),
        ("postgresql+psycopg2://ada:hidden@db/shop", "write postgresql+psycopg:// in place of postgresql+psycopg2://"),
        ("mysql://ada:hidden@db/shop", "write mysql+pymysql:// in place of mysql://"),
        ("mariadb://ada:hidden@db/shop", "write mariadb+pymysql:// in place of mariadb://"),
        ("mysql+aiomysql://ada:hidden@db/shop", "write mysql+pymysql:// in place of mysql+aiomysql://"),
        ("sqlite3:///shop.db", "write sqlite:// in place of sqlite3://"),
        ("sqlite+aiosqlite:///shop.db", "write sqlite:// in place of sqlite+aiosqlite://"),
        ("sqlite://shop.db", "three slashes"),
        ("shop.db", "is not a URL; write sqlite:///path"),
        ("", "is not a URL; write sqlite:///path"),
        ("postgresql+psycopg://ada:hidden@db:port/shop", "the port is not a number"),
        ("postgresql+psycopg://ada:hidden@[::1/shop", "the port is not a number"),
        ("oracle://ada:hidden@db/shop", "oracle cannot hold a ledger; write sqlite:///path"),
        ("http://ada:hidden@db/shop", "http cannot hold a ledger"),
        ("sqlite:////proc/shop/ledger.db", "the folder /proc/shop cannot be made"),
        ("postgresql+psycopg://ada:hidden@127.0.0.1:9/shop?colour=red", "invalid connection option"),
        ("mysql+pymysql://ada:hidden@127.0.0.1:9/shop?colour=red", "unexpected keyword argument 'colour'"),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_the_way_to_write_it(
    url: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "MySQLdb", None)  # a Django project may have installed PyMySQL under that name
    assert says in refused(url)


def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, " * 100)
    assert "not a database" in refused(f"sqlite:///{tmp_path}/notes.txt")


@pytest.mark.parametrize(
    "server",
    [pytest.param("postgres", marks=pytest.mark.postgres), pytest.param("mariadb", marks=pytest.mark.mariadb)],
)
def test_a_database_that_is_missing_is_named(server: str, request: pytest.FixtureRequest) -> None:
    url = str(request.getfixturevalue(f"{server}_url"))
    missing = parse_url(url).set(database="nowhere_at_all").render_as_string(hide_password=False)
    message = refused(missing)
    assert message.startswith("there is no database 'nowhere_at_all' at ")
    assert "CREATE DATABASE nowhere_at_all" in message
    with closing(Database(missing)) as database, pytest.raises(ConfigError, match="there is no database"):
        upgrade.current(database)


def test_a_ledger_of_a_newer_version_is_left_alone(ledger_url: str) -> None:
    ledger = Database(set_up(ledger_url))
    head = upgrade.head()
    move = sa.text(f"UPDATE {VERSION_TABLE} SET version_num = :revision")
    ledger.write(lambda connection: connection.execute(move, {"revision": "9999"}))
    try:
        message = refused(ledger_url)
        assert f"is at revision '9999', and this version of Penstock knows those up to {head}" in message
        assert upgrade.current(ledger) == "9999"
        assert not upgrade.is_known("9999")
    finally:
        ledger.write(lambda connection: connection.execute(move, {"revision": head}))
        ledger.close()
