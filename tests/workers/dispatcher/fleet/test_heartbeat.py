"""A dispatcher is on record next to the workers while it lives."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import partial

from support.polling import until

from penstock.config.settings import Settings
from penstock.ledger.members.roster import Roster, last_consumer, last_dispatcher
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import upgrade
from penstock.workers.dispatcher.dispatcher import Dispatcher
from penstock.workers.dispatcher.fleet.heartbeat import Heartbeat

LEASE = timedelta(seconds=0.3)


def living(database: Database) -> list[str]:
    return [dispatcher.name for dispatcher in database.read(partial(Roster.read, lease=LEASE)).dispatchers]


def test_a_dispatcher_registers_renews_its_lease_and_signs_off(ledger: Database) -> None:
    heartbeat = Heartbeat(ledger, "d1", timedelta(seconds=0.3))
    heartbeat.start()
    until(lambda: living(ledger) == ["d1"])
    first = ledger.read(last_dispatcher)
    assert first is not None
    until(lambda: ledger.read(last_dispatcher).lease_until > first.lease_until)  # type: ignore[union-attr]
    heartbeat.stop()
    assert heartbeat.join(60)
    dispatcher = ledger.read(last_dispatcher)
    assert dispatcher is not None
    assert dispatcher.stopped_at is not None
    assert (dispatcher.pid, living(ledger)) == (os.getpid(), [])
    assert ledger.read(last_dispatcher) == dispatcher
    assert ledger.read(lambda connection: last_consumer(connection, "dispatcher")) is None


def test_a_dispatcher_starts_without_its_ledger_and_is_entered_when_that_is_there(
    redis_url: str, prefix: str, sqlite_url: str
) -> None:
    settings = Settings(broker_url=redis_url, database_url=sqlite_url, prefix=prefix, stock_queues=())
    dispatcher = Dispatcher(settings)
    dispatcher.start()
    database = Database(sqlite_url)
    try:
        upgrade(database)
        [name] = until(lambda: living(database))
        assert name.startswith("dispatcher@")
    finally:
        dispatcher.stop()
    assert living(database) == []
    database.close()
