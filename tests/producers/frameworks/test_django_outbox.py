"""Django's outbox has the jobs that the ORM has committed; and the dispatcher empties it as any other."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import django_project
import pytest
import sqlalchemy as sa
from django.core.management import call_command
from django.db import IntegrityError, connections, transaction
from django.test.utils import CaptureQueriesContext
from django_project import Order, migrate
from support.brokers import Arrivals
from support.ledgers import Note, Tick, row_of, temporary_database
from support.polling import until
from support.servers.shared import MARIADB_URL, POSTGRES_URL, need

from penstock.config.errors import InvalidJob, PayloadTooLarge, UnknownQueue
from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import outbox
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers.contrib.django import Outbox, enqueue_on_commit, producer
from penstock.producers.contrib.django.models import OutboxEntry
from penstock.producers.enqueue.envelopes import EnvelopeBuilder
from penstock.producers.enqueue.outbox_rows import make_entry
from penstock.producers.outbox import Outbox as SqlOutbox
from penstock.workers.brokers import open_consumer
from penstock.workers.dispatcher.outbox.relay import open_outboxes

KINDS = [
    "sqlite",
    pytest.param("postgres", marks=pytest.mark.postgres),
    pytest.param("mariadb", marks=pytest.mark.mariadb),
]


@contextmanager
def empty_database(kind: str, folder: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'shop.db'}"
        return
    need({"postgres": "PostgreSQL", "mariadb": "MariaDB"}[kind])
    with temporary_database({"postgres": POSTGRES_URL, "mariadb": MARIADB_URL}[kind]) as url:
        yield url


@pytest.fixture(scope="module", params=KINDS)
def shop_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with empty_database(request.param, tmp_path_factory.mktemp("shop")) as url:
        yield url


@pytest.fixture(scope="module")
def migrated(shop_url: str) -> Iterator[str]:
    with django_project.database(shop_url) as alias:
        yield alias


@pytest.fixture
def alias(migrated: str) -> Iterator[str]:
    """The alias of a database with an empty outbox, on each database in turn."""
    OutboxEntry.objects.using(migrated).delete()
    Order.objects.using(migrated).delete()
    yield migrated
    connections[migrated].close()


def texts(alias: str) -> list[str]:
    bodies = OutboxEntry.objects.using(alias).order_by("position").values_list("body", flat=True)
    return [json.loads(bytes(body))[1]["text"] for body in bodies]


def orders(alias: str) -> list[int]:
    return list(Order.objects.using(alias).order_by("id").values_list("id", flat=True))


class Undo(Exception):
    pass


def test_a_job_is_committed_with_the_block_and_its_id_is_known_before(alias: str) -> None:
    with transaction.atomic(using=alias):
        Order.objects.using(alias).create(id=1)
        handle = Outbox(using=alias).enqueue(Note(text="one"))
        assert (handle.kind, handle.queue, len(handle.id)) == ("ledger.note", "notes", 36)
    entry = OutboxEntry.objects.using(alias).get()
    assert (entry.job_id, entry.kind, entry.queue, entry.track) == (handle.id, "ledger.note", "notes", True)
    assert json.loads(entry.headers)["id"] == handle.id
    assert orders(alias) == [1]


def test_a_block_rolled_back_takes_the_job_with_it(alias: str) -> None:
    out = Outbox(using=alias)
    with pytest.raises(IntegrityError), transaction.atomic(using=alias):
        Order.objects.using(alias).create(id=1)
        out.enqueue(Note())
        Order.objects.using(alias).create(id=1)
    with transaction.atomic(using=alias):
        out.enqueue(Note())
        transaction.set_rollback(True, using=alias)
    assert texts(alias) == []
    assert orders(alias) == []


def test_nested_blocks_and_savepoints_take_their_jobs_and_no_others(alias: str) -> None:
    out = Outbox(using=alias)
    with transaction.atomic(using=alias):
        out.enqueue(Note(text="before"))
        with transaction.atomic(using=alias):
            out.enqueue(Note(text="kept"))
            Order.objects.using(alias).create(id=1)
        with pytest.raises(Undo), transaction.atomic(using=alias):
            out.enqueue_many([Note(text="gone"), Note(text="gone")])
            Order.objects.using(alias).create(id=2)
            with transaction.atomic(using=alias):
                out.enqueue(Note(text="gone with the block around it"))
            raise Undo
        savepoint = transaction.savepoint(using=alias)
        out.enqueue(Note(text="gone"))
        transaction.savepoint_rollback(savepoint, using=alias)
        out.enqueue(Note(text="after"))
    assert texts(alias) == ["before", "kept", "after"]
    assert orders(alias) == [1]


def test_a_job_is_committed_at_once_in_autocommit(alias: str) -> None:
    out = Outbox(using=alias)
    out.enqueue(Note(text="one"))
    connections[alias].close()
    out.enqueue_many([Note(text="two"), Note(text="three")])
    out.enqueue_many([])
    connections[alias].close()
    assert texts(alias) == ["one", "two", "three"]


def test_enqueue_many_writes_jobs_in_order_and_enqueue_needs_one_insert(alias: str) -> None:
    expected = [str(number) for number in range(300)]
    with transaction.atomic(using=alias), CaptureQueriesContext(connections[alias]) as queries:
        Outbox(using=alias).enqueue(Note(text="first"))
    assert [query["sql"].split()[0] for query in queries] == ["INSERT"]
    handles = Outbox(using=alias).enqueue_many(Note(text=text) for text in expected)
    assert texts(alias) == ["first", *expected]
    assert len({handle.id for handle in handles}) == 300


def test_a_wrong_job_is_refused_at_once_and_the_block_goes_on(alias: str) -> None:
    out = Outbox(using=alias, max_payload_bytes=2000)
    with transaction.atomic(using=alias):
        Order.objects.using(alias).create(id=1)
        with pytest.raises(PayloadTooLarge):
            out.enqueue(Note(text="x" * 3000))
        with pytest.raises(UnknownQueue):
            out.enqueue(Note(), queue="nowhere")
        for options in ({"delay": -1}, {"key": "k" * 300}, {"tenant": "a\0b"}, {"id": "i" * 200}, {"unique": "reject"}):
            with pytest.raises(InvalidJob):
                out.enqueue(Note(), **options)  # type: ignore[arg-type]
        with pytest.raises(InvalidJob) as error:
            out.enqueue_many([Note(), Note(text="x" * 3000)])
        assert "number 1" in str(error.value.__notes__)
        with pytest.raises(TypeError, match="dealy"):
            out.enqueue(Note(), dealy=3)  # type: ignore[call-arg]
        with pytest.raises(InvalidJob, match="takes a Job"):
            out.enqueue({"text": "no job"})  # type: ignore[arg-type]
    assert texts(alias) == []
    assert orders(alias) == [1]


def test_the_row_is_the_one_that_sqlalchemys_outbox_writes(alias: str, shop_url: str) -> None:
    """Every column, as SQLAlchemy reads it; a time zone of the project's changes nothing."""
    options: dict[str, Any] = {
        "id": "given",
        "delay": timedelta(hours=1),
        "priority": "high",
        "key": "customer-7",
        "tenant": "acme",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "unique": "existing",
        "unique_for": 60,
    }
    engine = sa.create_engine(shop_url)
    try:
        Outbox(using=alias).enqueue(Note(text="é☃"), **options)
        Outbox(using=alias).enqueue(Tick())
        with engine.begin() as connection:
            SqlOutbox().enqueue(connection, Note(text="é☃"), **options)
            SqlOutbox().enqueue(connection, Tick())
        with engine.connect() as connection:
            rows = connection.execute(sa.select(outbox).order_by(outbox.c.position)).mappings().all()
    finally:
        engine.dispose()
    own, untracked, foreign, theirs_untracked = ({**row} for row in rows)
    for record in (own, untracked, foreign, theirs_untracked):
        assert abs(record.pop("created_at") - datetime.now(UTC)) < timedelta(hours=1)  # a zone would be hours off
        headers = json.loads(record.pop("headers"))
        for name in ("sent_at", "due_at"):
            headers["penstock"].pop(name, None)
        record["headers"] = headers
        record.pop("position")
        record["body"] = bytes(record["body"])
    for record in (untracked, theirs_untracked):
        record["headers"].pop("id"), record["headers"].pop("root_id"), record.pop("id")
    assert own == foreign
    assert untracked == theirs_untracked
    [_, row] = make_entry(EnvelopeBuilder(), Note(text="é☃"), options)
    assert {*row, "position", "taken_by", "taken_until"} == {column.name for column in outbox.columns}


def test_the_migration_is_what_the_model_says(alias: str) -> None:
    call_command("makemigrations", "penstock", check=True, dry_run=True, verbosity=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", ["django", "ledger"])
def test_a_database_may_be_shared_with_the_ledger_in_either_order_of_migration(
    kind: str, first: str, tmp_path: Path
) -> None:
    with empty_database(kind, tmp_path) as url:
        database = Database(url)
        try:
            if first == "ledger":
                upgrade(database)
            with django_project.database(url) as alias:
                upgrade(database)
                Outbox(using=alias).enqueue(Note(text="one"))
                if connections[alias].vendor == "postgresql":
                    names = "SELECT tgname FROM pg_trigger WHERE tgrelid = 'penstock_outbox'::regclass"
                    with connections[alias].cursor() as cursor:
                        cursor.execute(names)
                        assert cursor.fetchall() == [("penstock_outbox_notify",)]
                migrate(alias, "zero")  # the ledger's table stays
                assert texts(alias) == ["one"]
        finally:
            database.close()


def test_the_table_goes_when_the_app_is_unmigrated(tmp_path: Path) -> None:
    with django_project.database(f"sqlite:///{tmp_path / 'shop.db'}") as alias:
        migrate(alias, "zero")
        assert "penstock_outbox" not in connections[alias].introspection.table_names()


@contextmanager
def relay(settings: Settings) -> Iterator[Database]:
    ledger = Database(settings.database_url)
    upgrade(ledger)
    services = open_outboxes(settings, ledger)
    for service in services:
        service.start()
    try:
        yield ledger
    finally:
        for service in services:
            service.stop()
        for service in services:
            assert service.join(60)
        ledger.close()


def test_a_dispatcher_sends_what_is_committed_in_the_order_of_its_key(
    alias: str, shop_url: str, redis_url: str, prefix: str, sqlite_url: str
) -> None:
    settings = Settings(
        broker_url=redis_url, database_url=sqlite_url, outbox_urls=(shop_url,), prefix=prefix, stock_queues=()
    )
    consumer = open_consumer(redis_url, ["notes"], name=f"c-{uuid.uuid4().hex}", prefix=prefix)
    consumer.open()
    out = Outbox(using=alias)
    try:
        with relay(settings) as ledger:
            with transaction.atomic(using=alias):
                sent = [out.enqueue(Note(text=str(number)), key="k").id for number in range(20)]
                sent += [handle.id for handle in out.enqueue_many([Note(text="many"), Note(text="more")])]
                with pytest.raises(Undo), transaction.atomic(using=alias):
                    out.enqueue(Note(text="gone"))
                    raise Undo
            ids = Arrivals(consumer).wait_for(len(sent))
            until(lambda: texts(alias) == [])
            assert ids[:20] == sent[:20]
            assert sorted(ids) == sorted(sent)
            assert row_of(ledger, sent[0]).state == "queued"
            later = out.enqueue(Note(), delay=3600)
            until(lambda: row_of(ledger, later.id))
            due = row_of(ledger, later.id).due_at - datetime.now(UTC)
            assert timedelta(minutes=50) < due <= timedelta(hours=1)
    finally:
        consumer.close()


@pytest.mark.postgres
def test_postgresql_notifies_of_a_commit_and_of_nothing_else(tmp_path: Path) -> None:
    with empty_database("postgres", tmp_path) as url, django_project.database(url) as alias:
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as listening:
            raw: Any = listening.connection.driver_connection
            raw.execute("LISTEN penstock_outbox")
            with transaction.atomic(using=alias):
                Outbox(using=alias).enqueue(Note())
                transaction.set_rollback(True, using=alias)
            with transaction.atomic(using=alias):
                Outbox(using=alias).enqueue_many([Note(), Note()])
                assert list(raw.notifies(timeout=0.0)) == []
            events = list(raw.notifies(timeout=30.0, stop_after=1))
            raw.execute("UNLISTEN *")
        engine.dispose()
    assert [notification.channel for notification in events] == ["penstock_outbox"]


def test_threads_write_in_transactions_of_their_own(alias: str) -> None:
    out = Outbox(using=alias)

    def enqueue_in_transaction(number: int) -> None:
        with transaction.atomic(using=alias):
            out.enqueue(Note(text=f"kept {number}"))
            transaction.set_rollback(number % 2 == 1, using=alias)
        connections[alias].close()

    threads = [threading.Thread(target=enqueue_in_transaction, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts(alias)) == ["kept 0", "kept 2", "kept 4"]


def test_a_job_for_after_the_commit_is_sent_then_and_not_after_a_rollback(alias: str, penstock: Any) -> None:
    producer.cache_clear()
    with transaction.atomic(using=alias):
        enqueue_on_commit(Note(text="kept"), using=alias, key="k")
        penstock.refute_enqueued(Note)
        with pytest.raises(Undo), transaction.atomic(using=alias):
            enqueue_on_commit(Note(text="gone"), using=alias)
            raise Undo
    penstock.assert_enqueued(Note, text="kept")
    penstock.refute_enqueued(Note, text="gone")
    producer().close()
    producer.cache_clear()


def test_a_users_test_takes_the_outbox_in_a_transaction_that_is_rolled_back(alias: str, penstock: Any) -> None:
    with transaction.atomic(using=alias):
        handle = Outbox(using=alias).enqueue(Note(text="one"), key="k")
        penstock.refute_enqueued(Note)
        [runs] = penstock.take_outbox(alias)
        assert (runs.id, runs.key) == (handle.id, "k")
        assert penstock.take_outbox(alias) == []
        penstock.assert_enqueued(Note, text="one")
        transaction.set_rollback(True, using=alias)
    assert texts(alias) == []


def test_the_app_loads_neither_sqlalchemy_nor_an_engine() -> None:
    code = """
import sys, django
from django.conf import settings
settings.configure(INSTALLED_APPS=["penstock.producers.contrib.django", "django_tasks"],
                   SECRET_KEY="for this test only",
                   TASKS={"default": {"BACKEND": "penstock.producers.contrib.django.tasks.PenstockBackend"}},
                   DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
                   ROOT_URLCONF="penstock.producers.contrib.django.urls")
django.setup()
from django.core.management import call_command
from django.urls import reverse
from penstock.producers.contrib.django import Outbox
from penstock.schemas import Job
class Note(Job, kind="a.note"): pass
call_command("migrate", verbosity=0)
reverse("penstock-events")
Outbox().enqueue(Note())
from django_tasks import task
@task()
def ping(): pass
ping.enqueue()
heavy = ["celery", "dramatiq", "sqlalchemy", "redis", "kombu", "amqp", "fastapi"]
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
