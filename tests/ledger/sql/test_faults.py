"""Errors of the databases: by their codes they are about a row's data, or mean that the ledger is unavailable."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from support.ledgers import set_up

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.sql.database import MOST_CONNECTIONS, Database
from penstock.ledger.sql.faults import Fault, fault_of
from penstock.ledger.sql.tables import audit_subjects

POSTGRES = {
    Fault.DATA: ("21000", "22003", "22021", "22P05", "23502", "23505", "23514", "38000", "44000", "54000", "P0001"),
    Fault.CONFLICT: ("40001", "40P01"),
    Fault.TIMEOUT: ("55P03", "57014"),
    Fault.OUTAGE: (
        *("08003", "08006", "25006", "25P03", "26000", "28P01", "40003", "42P05", "53100", "53200", "53300", "53400"),
        *("57P01", "57P02", "57P03", "57P05", "58000", "58030", "XX000", "XX001"),
    ),
    Fault.SCHEMA: ("3F000", "42P01", "42703"),
    Fault.OTHER: ("25001", "25P02", "42501", "42601", "42883", "0A000"),
}
MARIADB = {
    Fault.DATA: (1048, 1062, 1153, 1264, 1366, 1406, 1452, 1644, 3819, 4025),
    Fault.CONFLICT: (1020, 1213),
    Fault.TIMEOUT: (1205, 1317, 1969, 3024, 3572),
    Fault.OUTAGE: (
        *(28, 144, 1021, 1030, 1037, 1040, 1041, 1044, 1045, 1047, 1053, 1114, 1158, 1180, 1203, 1226, 1290, 1792),
        *(1836, 1927, 2006, 2013, 3100, 3169),
    ),
    Fault.SCHEMA: (1054, 1146),
    Fault.OTHER: (1064, 1142, 1305),
}


def rows(table: dict[Fault, tuple[str | int, ...]]) -> list[tuple[str | int, Fault]]:
    return [(code, fault) for fault, codes in table.items() for code in codes]


def raising(database: Database, code: str | int) -> str:
    """A statement that raises the error of this code, whatever the words."""
    if database.dialect == "postgresql":
        return f"DO $$ BEGIN RAISE EXCEPTION 'oh' USING ERRCODE = '{code}'; END $$"
    return f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'oh'"


def connection_id(database: Database) -> int:
    word = "pg_backend_pid()" if database.dialect == "postgresql" else "connection_id()"
    return int(database.read(lambda connection: connection.exec_driver_sql(f"SELECT {word}").scalar_one()))


@pytest.fixture
def postgres(postgres_url: str) -> Database:
    return Database(postgres_url, pool_size=1)


@pytest.fixture
def mariadb(mariadb_url: str) -> Database:
    return Database(mariadb_url, pool_size=1)


@pytest.mark.postgres
@pytest.mark.parametrize(("code", "fault"), rows(POSTGRES))
def test_postgresql_errors_are_judged_by_sqlstate(postgres: Database, code: str, fault: Fault) -> None:
    check(postgres, code, fault)


@pytest.mark.mariadb
@pytest.mark.parametrize(("code", "fault"), rows(MARIADB))
def test_mariadb_errors_are_judged_by_errno(mariadb: Database, code: int, fault: Fault) -> None:
    check(mariadb, code, fault)


def check(database: Database, code: str | int, fault: Fault) -> None:
    """A transaction that meets the error raises what its fault asks for, and leaves the right connection behind."""
    tries = 0

    def fail(connection: sa.Connection) -> None:
        nonlocal tries
        tries += 1
        connection.exec_driver_sql(raising(database, code))

    before = connection_id(database)
    with pytest.raises(DBAPIError if fault is Fault.DATA else LedgerUnavailable) as raised:
        database.write(fail)
    cause = raised.value if fault is Fault.DATA else raised.value.__cause__
    assert cause is not None
    assert fault_of(cause) is fault
    if fault is Fault.SCHEMA:
        assert "penstock db upgrade" in str(raised.value)
    elif fault is not Fault.DATA:
        assert str(code) in str(raised.value)
    repeated = fault is Fault.CONFLICT or code in ("23502", "23505", "23514", 1048, 1062, 1452)
    assert tries == (8 if repeated else 1)
    is_discarded = connection_id(database) != before
    assert is_discarded == (fault in (Fault.TIMEOUT, Fault.OUTAGE))
    database.close()


@pytest.fixture
def sqlite_ledger(sqlite_url: str) -> Iterator[Database]:
    database = Database(set_up(sqlite_url), pool_size=1)
    yield database
    database.close()


def insert(connection: sa.Connection, subject: str) -> None:
    connection.execute(sa.insert(audit_subjects).values(subject=subject, audit_id="1"))


def test_sqlite_that_is_read_only_is_unavailable_until_it_is_opened_again(sqlite_ledger: Database) -> None:
    sqlite_ledger.read(lambda connection: connection.exec_driver_sql("PRAGMA query_only = ON"))
    with pytest.raises(LedgerUnavailable, match="readonly database"):
        sqlite_ledger.write(lambda connection: insert(connection, "first"))
    sqlite_ledger.write(lambda connection: insert(connection, "second"))


def test_sqlite_whose_disk_is_full_is_unavailable(sqlite_ledger: Database) -> None:
    def fill(connection: sa.Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        connection.execute(sa.insert(audit_subjects), [{"subject": "x" * 120, "audit_id": str(i)} for i in range(999)])

    with pytest.raises(LedgerUnavailable, match=r"full \[SQLITE_FULL\]"):
        sqlite_ledger.write(fill)
    sqlite_ledger.write(lambda connection: insert(connection, "second"))


def test_sqlite_that_stays_locked_is_unavailable(sqlite_ledger: Database) -> None:
    other = sqlite3.connect(str(sqlite_ledger.engine.url.database), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    sqlite_ledger.read(lambda connection: connection.exec_driver_sql("PRAGMA busy_timeout = 10"))
    with pytest.raises(LedgerUnavailable, match="locked"):
        sqlite_ledger.write(lambda connection: insert(connection, "first"))
    other.execute("ROLLBACK")
    other.close()
    sqlite_ledger.write(lambda connection: insert(connection, "second"))


def test_a_file_that_is_not_a_sqlite_database_is_an_unavailable_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database" * 1000)
    database = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    with pytest.raises(LedgerUnavailable, match="SQLITE_NOTADB"):
        database.read(lambda connection: connection.execute(sa.select(1)))
    database.close()


def test_a_missing_table_asks_for_an_upgrade_on_every_database(ledger: Database) -> None:
    with pytest.raises(LedgerUnavailable, match="run: penstock db upgrade"):
        ledger.read(lambda connection: connection.exec_driver_sql("SELECT * FROM penstock_nothing"))


def test_values_that_a_database_refuses_are_about_data_on_every_database(ledger: Database) -> None:
    """The same transaction with another row goes on over the same pool."""
    refused = ["a", "a"]
    with pytest.raises(DBAPIError) as raised:
        ledger.write(lambda connection: [insert(connection, subject) for subject in refused])
    assert fault_of(raised.value) is Fault.DATA
    ledger.write(lambda connection: insert(connection, "a"))


def test_a_pool_that_is_used_up_is_an_unavailable_ledger(ledger: Database) -> None:
    database = Database(ledger.url)
    database.engine.pool._timeout = 0.01  # type: ignore[attr-defined]  # of 30 s
    with ExitStack() as used:
        for _ in range(MOST_CONNECTIONS):
            used.enter_context(database.engine.connect())
        with pytest.raises(LedgerUnavailable, match="QueuePool limit"):
            database.read(lambda connection: connection.execute(sa.select(1)))
        with pytest.raises(LedgerUnavailable, match="QueuePool limit"):
            database.write(lambda connection: connection.execute(sa.select(1)))
    database.close()


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files")])
def test_a_process_without_memory_or_files_has_an_unavailable_ledger(sqlite_ledger: Database, error: Exception) -> None:
    def fail(_connection: sa.Connection) -> None:
        raise error

    for run in (sqlite_ledger.read, sqlite_ledger.write):
        with pytest.raises(LedgerUnavailable):
            run(fail)
