"""`adopt(…, outbox=…)`: what tasks and actors send is written into a transaction, and sent after its commit."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import celery
import dramatiq
import pytest
import sqlalchemy as sa
from dramatiq.brokers.stub import StubBroker
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from support.brokers import Arrivals
from support.ledgers import temporary_database
from support.polling import until
from support.servers.shared import POSTGRES_URL, need

from penstock.config.errors import ConfigError
from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import outbox
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers.contrib import celery as celery_contrib
from penstock.producers.contrib import dramatiq as dramatiq_contrib
from penstock.producers.outbox import Outbox, create_outbox
from penstock.schemas.wire.codec import Envelope
from penstock.workers.brokers import open_consumer
from penstock.workers.dispatcher.outbox.relay import open_outboxes
from penstock.workers.engines.celery.adopted.sending import Resent, Sending, running

sys.path.append(str(Path(__file__).parents[2] / "producers/frameworks"))

QUEUE = "letters"
ORDERS = sa.Table("adopted_orders", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
Send = Callable[..., str]
"""Sends a message of an adopted task, and returns its id. Options: `delay`, in seconds."""


def celery_task(settings: Settings, outbox: Any) -> Send:
    app = celery.Celery("letters", broker="memory://", set_as_current=False, fixups=set())

    @app.task(name="letters.compose", shared=False)
    def compose(number: int) -> None: ...

    app.conf.task_default_queue = QUEUE
    celery_contrib.adopt(app, settings=settings, outbox=outbox)
    return lambda number, delay=None: str(compose.apply_async((number,), countdown=delay).id)


def dramatiq_actor(settings: Settings, outbox: Any) -> Send:
    broker = StubBroker(middleware=[])

    @dramatiq.actor(actor_name="letters.compose", queue_name=QUEUE, broker=broker)
    def compose(number: int) -> None: ...

    dramatiq_contrib.adopt(broker, settings, outbox=outbox)
    return lambda number, delay=None: str(
        compose.send_with_options(args=(number,), delay=None if delay is None else delay * 1000).message_id
    )


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def shop_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The application's own database, empty."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'shop.db'}"
        return
    need("PostgreSQL")
    with temporary_database(POSTGRES_URL) as url:
        yield url


@pytest.fixture
def settings(shop_url: str, redis_url: str, prefix: str, sqlite_url: str) -> Settings:
    return Settings(
        broker_url=redis_url, database_url=sqlite_url, outbox_urls=(shop_url,), prefix=prefix, stock_queues=()
    )


@contextmanager
def arrivals(settings: Settings) -> Iterator[Arrivals]:
    """Deliveries of the tasks' queue, to which a dispatcher's relay sends."""
    ledger = Database(settings.database_url)
    upgrade(ledger)
    consumer = open_consumer(settings.broker_url, [QUEUE], name=f"c-{uuid.uuid4().hex}", prefix=settings.prefix)
    consumer.open()
    services = open_outboxes(settings, ledger)
    for service in services:
        service.start()
    try:
        yield Arrivals(consumer)
    finally:
        for service in services:
            service.stop()
        for service in services:
            assert service.join(60)
        consumer.close()
        ledger.close()


@pytest.mark.parametrize("adopted", [celery_task, dramatiq_actor])
def test_messages_share_the_fate_of_a_sqlalchemy_transaction(
    adopted: Callable[[Settings, Any], Send], shop_url: str, settings: Settings
) -> None:
    engine = sa.create_engine(shop_url)
    ORDERS.create(engine)
    create_outbox(engine)
    session = scoped_session(sessionmaker(engine))
    open_transactions = [session]
    send = adopted(settings, lambda: session() if open_transactions else None)
    with arrivals(settings) as arrived:
        session.execute(sa.insert(ORDERS).values(id=1))
        send(1)
        session.flush()
        session.rollback()
        session.execute(sa.insert(ORDERS).values(id=2))
        committed, later = send(2), send(3, delay=3600)
        session.flush()
        assert arrived.more() == 0, "it must not be sent before the commit"
        session.commit()
        assert arrived.wait_for(1) == [committed]
        assert arrived.deliveries[0].envelope.kind == "letters.compose"
        # One that is not due waits in the ledger.
        ledger = Database(settings.database_url)
        jobs = until(lambda: _waiting(ledger))
        ledger.close()
        assert jobs == [later]
        # Without a transaction it is sent at once.
        open_transactions.clear()
        direct = send(4)
        assert arrived.wait_for(2) == [committed, direct]
    with engine.connect() as connection:
        assert list(connection.scalars(sa.select(ORDERS.c.id))) == [2]
        assert connection.scalar(sa.select(sa.func.count()).select_from(outbox)) == 0
    session.remove()
    engine.dispose()


def _waiting(ledger: Database) -> list[str]:
    from penstock.ledger.sql.tables import jobs

    select = sa.select(jobs.c.id).where(jobs.c.state == "scheduled")
    return ledger.read(lambda connection: list(connection.scalars(select)))


@pytest.mark.parametrize("adopted", [celery_task, dramatiq_actor])
def test_messages_share_the_fate_of_an_atomic_block(
    adopted: Callable[[Settings, Any], Send], shop_url: str, settings: Settings
) -> None:
    import django_project
    from django.db import transaction

    from penstock.producers.contrib.django import Outbox as DjangoOutbox

    with django_project.database(shop_url) as alias, arrivals(settings) as arrived:
        send = adopted(settings, DjangoOutbox(using=alias))
        with pytest.raises(ZeroDivisionError), transaction.atomic(using=alias):
            send(1)
            1 / 0  # noqa: B018
        with transaction.atomic(using=alias):
            django_project.Order.objects.using(alias).create(id=2)
            committed = send(2)
            assert arrived.more() == 0, "it must not be sent before the commit"
        assert arrived.wait_for(1) == [committed]
        alone = send(3)
        assert arrived.wait_for(2) == [committed, alone]


class Sent(list[Envelope]):
    """A sender that keeps what it is to send."""

    def send(self, envelopes: Sequence[Envelope]) -> None:
        self.extend(envelopes)


def test_a_worker_keeps_what_a_task_sends_under_its_own_id_whatever_the_application_adopts() -> None:
    sent, written = Sent(), []
    app = celery.Celery("letters", broker="memory://", set_as_current=False, fixups=set())

    @app.task(name="letters.compose", shared=False)
    def compose(number: int) -> None: ...

    celery_contrib.adopt(app, settings=Settings(), send=written.append)
    celery_contrib.redirect(app, Settings(), Sending(sent).send)  # type: ignore[arg-type]  # as the worker does
    task = Resent("t1")
    token = running.set(task)
    try:
        first = compose.delay(1)
        compose.apply_async((2,), task_id="t1")
    finally:
        running.reset(token)
    assert ([envelope.id for envelope in sent], written) == ([first.id], [])
    assert task.envelope is not None


def test_what_no_message_can_be_written_to_is_refused(shop_url: str, settings: Settings) -> None:
    engine = sa.create_engine(shop_url)
    for wrong in (sessionmaker(engine), Session, Outbox(), "session", engine):
        with pytest.raises(ConfigError, match="outbox= takes a function that returns the Session"):
            celery_task(settings, wrong)
        with pytest.raises(ConfigError, match="outbox= takes a function that returns the Session"):
            dramatiq_actor(settings, wrong)
    engine.dispose()
