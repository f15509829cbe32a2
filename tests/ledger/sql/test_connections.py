"""Connections to the ledger: one that died while idle is replaced, and a transaction is atomic."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from penstock.ledger.sql import engine as engine_module
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import audit_subjects

_WHO = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT connection_id()"}
_END = {"postgresql": "SELECT pg_terminate_backend({})", "mysql": "KILL {}"}


def _number(connection: sa.Connection) -> int:
    number: int = connection.exec_driver_sql(_WHO[connection.dialect.name]).scalar_one()
    return number


def _entered(subject: str) -> sa.Insert:
    return sa.insert(audit_subjects).values(subject=subject, audit_id="1")


def _subjects(ledger: Database) -> list[str]:
    return sorted(ledger.read(lambda connection: connection.scalars(sa.select(audit_subjects.c.subject)).all()))


@pytest.mark.parametrize(
    "ledger_url",
    [pytest.param("postgres", marks=pytest.mark.postgres), pytest.param("mariadb", marks=pytest.mark.mariadb)],
    indirect=True,
)
def test_a_connection_that_died_idle_is_replaced(ledger: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_PING_AFTER_SECONDS", 0.0)
    before = ledger.write(_number)
    other = Database(ledger.url)
    other.write(lambda connection: connection.exec_driver_sql(_END[ledger.dialect].format(before)))
    other.close()
    assert ledger.write(_number) != before
    assert ledger.read(_number) != before


def test_a_failed_transaction_leaves_nothing(ledger: Database) -> None:
    def fail(connection: sa.Connection) -> None:
        connection.execute(_entered("half"))
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        ledger.write(fail)
    assert _subjects(ledger) == []


@pytest.mark.parametrize("options", [{}, {"isolation_level": "SERIALIZABLE"}])
def test_a_session_of_the_engine_is_a_transaction(ledger: Database, options: dict[str, str]) -> None:
    with Session(ledger.engine) as session:
        session.connection(execution_options=options).execute(_entered("first"))
        session.rollback()
        session.connection(execution_options=options).execute(_entered("second"))
        session.commit()
    assert _subjects(ledger) == ["second"]
    ledger.write(lambda connection: connection.execute(_entered("third")))
    assert _subjects(ledger) == ["second", "third"]


def test_a_connection_in_use_is_closed_when_it_comes_back(ledger_url: str) -> None:
    database = Database(ledger_url)
    opened: list[object] = []
    sa.event.listen(database.engine, "connect", lambda connection, record: opened.append(connection))
    sa.event.listen(database.engine, "close", lambda connection, record: opened.remove(connection))
    reading, closed = threading.Event(), threading.Event()

    def wait_and_read(connection: sa.Connection) -> None:
        reading.set()
        assert closed.wait(60)
        assert connection.scalar(sa.select(1)) == 1

    thread = threading.Thread(target=database.read, args=(wait_and_read,))
    thread.start()
    assert reading.wait(60)
    assert len(opened) == 1
    database.close()
    closed.set()
    thread.join(60)
    assert opened == []
    used: list[object] = []
    for _ in range(2):
        database.read(lambda connection: connection.scalar(sa.select(1)))
        used += opened
    assert len(used) == 2, "one that is used again keeps its connection"
    assert used[0] is used[1]
    database.close()
    assert opened == []
