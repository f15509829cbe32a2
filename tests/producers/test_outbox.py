"""The outbox has the jobs that the caller has committed, on every database and with every sort of session."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from support.ledgers import Login, Note, Tick, temporary_database
from support.servers.shared import POSTGRES_URL, need

from penstock.config.errors import InvalidJob, PayloadTooLarge, UnknownQueue
from penstock.config.settings import Settings
from penstock.ledger.sql.engine import configure_sqlite
from penstock.ledger.sql.tables import outbox
from penstock.producers.handles.handles import AsyncJobHandle, JobHandle
from penstock.producers.outbox import Outbox, create_outbox, drop_outbox, outbox_metadata


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@pytest.fixture
def engine(ledger_url: str) -> Iterator[sa.Engine]:
    """An application's own engine, with a table of its own next to the outbox."""
    engine = sa.create_engine(ledger_url)
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)  # pysqlite begins no transaction for a savepoint
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


def texts(engine: sa.Engine) -> list[str]:
    """Texts of the jobs in the outbox, in their order."""
    with engine.connect() as connection:
        bodies = connection.execute(sa.select(outbox.c.body).order_by(outbox.c.position)).scalars()
        return [json.loads(body)[1]["text"] for body in bodies]


def orders(engine: sa.Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.execute(sa.select(Order.id).order_by(Order.id)).scalars())


def test_a_job_is_written_when_the_session_commits_and_its_id_is_known_before(engine: sa.Engine) -> None:
    with Session(engine) as session:
        session.add(Order(id=1))
        handle = Outbox().enqueue(session, Note(text="one"))
        assert isinstance(handle, JobHandle)
        assert (handle.kind, handle.queue, len(handle.id)) == ("ledger.note", "notes", 36)
        assert texts(engine) == []
        session.commit()
    with engine.connect() as connection:
        row = connection.execute(sa.select(outbox)).one()
    assert (row.id, row.kind, row.queue, row.track) == (handle.id, "ledger.note", "notes", True)
    assert json.loads(row.headers)["id"] == handle.id
    assert orders(engine) == [1]


def test_a_rollback_takes_the_job_with_it(engine: sa.Engine) -> None:
    with Session(engine) as session:
        session.add(Order(id=1))
        Outbox().enqueue(session, Note())
        session.flush()
        session.rollback()
        Outbox().enqueue(session, Note())  # not even flushed
    with pytest.raises(sa.exc.IntegrityError), Session(engine) as session, session.begin():
        session.add(Order(id=2))
        session.flush()
        Outbox().enqueue(session, Note())
        session.execute(sa.insert(Order).values(id=2))
    assert texts(engine) == []
    assert orders(engine) == []


def test_a_savepoint_rolled_back_takes_its_jobs_and_no_others(engine: sa.Engine) -> None:
    out = Outbox()
    with Session(engine) as session, session.begin():
        out.enqueue(session, Note(text="before"))
        with session.begin_nested():
            out.enqueue(session, Note(text="kept"))
            session.add(Order(id=1))
        inner = session.begin_nested()
        out.enqueue(session, Note(text="gone, flushed"))
        session.flush()
        out.enqueue(session, Note(text="gone, not flushed"))
        session.add(Order(id=2))
        inner.rollback()
        outer = session.begin_nested()
        with session.begin_nested():
            out.enqueue(session, Note(text="gone with the savepoint around it"))
            session.add(Order(id=3))
        outer.rollback()
        out.enqueue(session, Note(text="after"))
    assert texts(engine) == ["before", "kept", "after"]
    assert orders(engine) == [1]


def test_a_session_inside_a_transaction_of_the_caller_commits_nothing_by_itself(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        for commits in (False, True):
            around = connection.begin()
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                session.add(Order(id=1))
                Outbox().enqueue(session, Note(text=str(commits)))
                session.commit()
            if commits:
                around.commit()
            else:
                around.rollback()
    assert texts(engine) == ["True"]
    assert orders(engine) == [1]


def test_a_plain_connection_writes_at_once_in_its_transaction(engine: sa.Engine) -> None:
    out = Outbox()
    with engine.connect() as connection:
        with connection.begin():
            out.enqueue(connection, Note(text="one"))
            savepoint = connection.begin_nested()
            out.enqueue(connection, Note(text="gone"))
            savepoint.rollback()
        with connection.begin() as transaction:
            out.enqueue_many(connection, [Note(text="gone"), Note(text="too")])
            transaction.rollback()
        with connection.begin():
            out.enqueue_many(connection, [Note(text=str(number)) for number in range(5)])
            out.enqueue_many(connection, [])
    assert texts(engine) == ["one", "0", "1", "2", "3", "4"]


def test_a_job_is_committed_at_once_with_autocommit(engine: sa.Engine) -> None:
    out = Outbox()
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection:
        out.enqueue(connection, Note(text="connection"))
        connection.rollback()
    with Session(autocommit) as session:
        session.add(Order(id=1))
        out.enqueue(session, Note(text="session"))
        session.flush()
        session.rollback()
    assert texts(engine) == ["connection", "session"]
    assert orders(engine) == [1]


def test_a_scoped_session_and_one_without_autoflush(engine: sa.Engine) -> None:
    scoped = scoped_session(sessionmaker(engine, autoflush=False))
    Outbox().enqueue(scoped, Note(text="one"))
    scoped.commit()
    Outbox().enqueue(scoped, Note(text="two"))
    scoped.remove()
    assert texts(engine) == ["one"]


def test_enqueue_many_writes_jobs_in_order_with_one_insert(engine: sa.Engine) -> None:
    inserts: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def count(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("INSERT"):
            inserts.append(statement)

    expected = [str(number) for number in range(300)]
    with Session(engine) as session:
        Outbox().enqueue(session, Note(text="first"))
        handles = Outbox().enqueue_many(session, [Note(text=text) for text in expected])
        session.commit()
    if engine.dialect.name != "sqlite":  # SQLAlchemy inserts row by row there, which costs no round trip
        assert len(inserts) == 1
    inserts.clear()
    with engine.begin() as connection:
        Outbox().enqueue_many(connection, [Note(text=text) for text in expected])
    assert len(inserts) == 1
    assert texts(engine) == ["first", *expected, *expected]
    assert len({handle.id for handle in handles}) == 300


async def _asynchronous(url: str) -> list[Any]:
    engine = create_async_engine(url)
    make = async_sessionmaker(engine)
    out = Outbox()
    try:
        async with make() as session:
            handles: list[Any] = [out.enqueue(session, Note(text="committed"))]
            handles += out.enqueue_many(session, [Note(text="two"), Note(text="three")])
            await session.commit()
        async with make() as session:
            out.enqueue(session, Note(text="rolled back"))
            await session.flush()
            await session.rollback()
        async with make() as session, session.begin():
            savepoint = await session.begin_nested()
            out.enqueue(session, Note(text="gone"))
            await savepoint.rollback()
            out.enqueue(session, Note(text="four"))
        scoped: async_scoped_session[AsyncSession] = async_scoped_session(make, scopefunc=lambda: 1)
        handles.append(out.enqueue(scoped, Note(text="five")))
        await scoped.commit()
        await scoped.remove()
        async with engine.begin() as connection:
            with pytest.raises(TypeError, match="run_sync"):
                out.enqueue(connection, Note())  # type: ignore[call-overload]
            await connection.run_sync(out.enqueue, Note(text="six"))
    finally:
        await engine.dispose()
    return handles


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_an_asynchronous_session_needs_no_await(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    import asyncio

    url = f"sqlite:///{tmp_path / 'shop.db'}"
    if database == "postgres":
        url = str(request.getfixturevalue("postgres_url"))
    engine = sa.create_engine(url)
    drop_outbox(engine)
    create_outbox(engine)
    handles = asyncio.run(_asynchronous(url.replace("sqlite:", "sqlite+aiosqlite:")))
    assert all(isinstance(handle, AsyncJobHandle) for handle in handles)
    written = texts(engine)
    engine.dispose()
    assert written == ["committed", "two", "three", "four", "five", "six"]


def test_options_are_all_kept(engine: sa.Engine) -> None:
    out = Outbox()
    with Session(engine) as session:
        options: dict[str, Any] = {
            "delay": timedelta(hours=1),
            "priority": "high",
            "key": "customer-7",
            "tenant": "acme",
            "expires_in": 7200,
            "queue": "ticks",
            "id": "given",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "unique": "existing",
            "unique_for": 60,
        }
        handle = out.enqueue(session, Note(), **options)
        out.enqueue(session, Note(), **options)  # a repeated id is not an error of the transaction
        out.enqueue(session, Tick())
        session.commit()
    with engine.connect() as connection:
        row, again, untracked = connection.execute(sa.select(outbox).order_by(outbox.c.position)).all()
    ours = json.loads(row.headers)["penstock"]
    assert (handle.id, handle.queue) == ("given", "ticks")
    assert (row.id, row.queue, row.priority, row.key) == ("given", "dispatcher", "high", "customer-7")
    assert (ours["tenant"], ours["queue"], ours["traceparent"]) == ("acme", "ticks", options["traceparent"])
    assert ours["due_at"] < ours["expires_at"]
    assert json.loads(row.policy)["hold"] == 60
    assert again.id == "given"
    assert (untracked.track, untracked.policy) == (False, None)


def test_a_wrong_job_is_refused_at_once_and_the_transaction_goes_on(engine: sa.Engine) -> None:
    out = Outbox(max_payload_bytes=2000)
    with Session(engine) as session:
        session.add(Order(id=1))
        with pytest.raises(PayloadTooLarge):
            out.enqueue(session, Note(text="x" * 3000))
        with pytest.raises(UnknownQueue):
            out.enqueue(session, Note(), queue="nowhere")
        for options in ({"delay": -1}, {"key": "k" * 300}, {"tenant": "a\0b"}, {"id": "i" * 200}, {"unique": "reject"}):
            with pytest.raises(InvalidJob):
                out.enqueue(session, Note(), **options)  # type: ignore[arg-type]
        with pytest.raises(InvalidJob) as error:
            out.enqueue_many(session, [Note(), Note(text="x" * 3000)])
        assert "number 1" in str(error.value.__notes__)
        with pytest.raises(TypeError, match="dealy"):
            out.enqueue(session, Note(), dealy=3)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="Session, AsyncSession or Connection"):
            out.enqueue(engine, Note())  # type: ignore[call-overload]
        with pytest.raises(InvalidJob, match="takes a Job"):
            out.enqueue(session, {"text": "no job"})  # type: ignore[call-overload]
        session.commit()
    assert texts(engine) == []
    assert orders(engine) == [1]


def test_a_table_of_the_users_own_is_made_once_and_by_their_metadata_too(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    create_outbox(engine)
    with engine.begin() as connection:
        create_outbox(connection)
    assert sa.inspect(engine).get_table_names() == ["penstock_outbox"]
    drop_outbox(engine)
    outbox_metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        Outbox().enqueue(session, Note(text="one"))
    written = texts(engine)
    engine.dispose()
    assert written == ["one"]


@pytest.mark.postgres
def test_postgresql_notifies_of_a_commit_and_of_nothing_else() -> None:
    need("PostgreSQL")
    with temporary_database(POSTGRES_URL) as url:
        engine = sa.create_engine(url)
        create_outbox(engine)
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TRIGGER penstock_outbox_notify ON penstock_outbox")
        create_outbox(engine)  # a migration that made the table alone
        create_outbox(engine)
        listening = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        raw: Any = listening.connection.driver_connection
        raw.execute("LISTEN penstock_outbox")
        with Session(engine) as session:
            Outbox().enqueue(session, Note())
            session.flush()
            session.rollback()
            Outbox().enqueue_many(session, [Note(), Note()])
            session.flush()
            assert list(raw.notifies(timeout=0.0)) == []
            session.commit()
        events = list(raw.notifies(timeout=30.0, stop_after=1))
        listening.close()
        drop_outbox(engine)
        assert sa.inspect(engine).get_table_names() == []
        engine.dispose()
    assert [notification.channel for notification in events] == ["penstock_outbox"]


BACKEND = """
import os, signal, sys
import sqlalchemy as sa
from sqlalchemy.orm import Session
from support.ledgers import Note
from penstock.producers.outbox import Outbox

with Session(sa.create_engine(sys.argv[1])) as session:
    Outbox().enqueue(session, Note(text="committed"))
    session.commit()
    Outbox().enqueue(session, Note(text="flushed"))
    session.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_backend_that_is_killed_leaves_what_it_had_committed(engine: sa.Engine, ledger_url: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", BACKEND, ledger_url], env=environment, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert texts(engine) == ["committed"]


def test_an_outbox_as_the_settings_say_gives_handles_that_read_the_ledger(engine: sa.Engine, ledger_url: str) -> None:
    out = Outbox.from_settings(Settings(database_url=ledger_url, max_payload_bytes=1024))
    with Session(engine) as session:
        handle = out.enqueue(session, Login(user="ada"))
        with pytest.raises(PayloadTooLarge):
            out.enqueue(session, Note(text="x" * 1024))
        session.commit()
    assert handle.status().state == "queued"
    out.close()


def test_importing_producers_does_not_load_sqlalchemy() -> None:
    code = "import sys, penstock.producers; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_pages_example_runs_as_it_is_written(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent.parent / "docs/outbox.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    with engine.connect() as connection:
        ids = list(connection.execute(sa.select(outbox.c.id)).scalars())
    engine.dispose()
    assert [f"sent as soon as this commits: {job_id}" for job_id in ids] == done.stdout.splitlines()
