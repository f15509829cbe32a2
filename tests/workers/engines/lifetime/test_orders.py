"""Workers and dispatchers that are drained and stopped through the ledger, without remote control."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from engine_jobs import Sleep
from running import Running, running
from support.polling import WAIT_SECONDS, until
from support.servers.shared import broker_url, delete_queues

from penstock.config.errors import InvalidState, WorkerNotFound
from penstock.config.settings import Settings
from penstock.ledger.members.orders import give_order
from penstock.ledger.members.overview import MemberStatus, read_member, read_members
from penstock.ledger.members.roster import Roster
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.schemas import __version__
from penstock.schemas.states import State
from penstock.workers.dispatcher.dispatcher import Dispatcher
from penstock.workers.local.up.redis_server import RedisServer

OFF = {"PENSTOCK_REMOTE_CONTROL": "off", "PENSTOCK_GRACE_SECONDS": "1"}

LEASE = Settings().lease


def status(worker: Running) -> MemberStatus:
    member = read_member(worker.database, worker.name, worker.settings.lease)
    assert member is not None
    return member


@pytest.fixture(params=["redis", "rabbitmq"])
def url(request: pytest.FixtureRequest, redis_server: RedisServer, prefix: str) -> Iterator[str]:
    """Each broker in turn."""
    yield broker_url(request.param, redis_server)
    delete_queues(request.param, prefix)


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_worker_drains_and_then_stops_as_a_person_orders(engine: str, url: str, prefix: str, tmp_path: Path) -> None:
    with running(engine, url, prefix, tmp_path, environment=OFF) as worker:
        handle = worker.producer.enqueue(Sleep(seconds=600))
        until(lambda: handle.status().state is State.RUNNING, "the running job")
        before = status(worker)
        [job] = before.running
        assert (before.state, job.id, job.kind, before.member.version) == (
            "running",
            handle.id,
            "engines.sleep",
            __version__,
        )
        assert (before.member.concurrency, before.member.pid) == (5, worker.process.pid)

        give_order(worker.database, worker.name, "drain", actor="ann", lease=LEASE, reason="deploy")
        until(lambda: status(worker).state == "draining", "the drain")
        assert worker.database.read(partial(Roster.read, lease=LEASE)).queues() == set()
        with pytest.raises(InvalidState, match="ordered to drain already"):
            give_order(worker.database, worker.name, "drain", actor="ann", lease=LEASE)
        assert status(worker).running == [job] or status(worker).running[0].id == job.id

        give_order(worker.database, worker.name, "stop", actor="bob", lease=LEASE)
        assert worker.process.wait(WAIT_SECONDS) == 0
        assert (status(worker).state, status(worker).running) == ("stopped", [])
        assert handle.status().state is not State.RUNNING  # released, after its grace
        with pytest.raises(InvalidState, match="ended already"):
            give_order(worker.database, worker.name, "stop", actor="bob", lease=LEASE)
        acts = [(act.actor, act.act, act.subject) for act in audit.find(worker.database)]
        assert acts == [("bob", "stop", worker.name), ("ann", "drain", worker.name)]


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_the_jobs_of_a_killed_worker_are_not_running(engine: str, redis_url: str, prefix: str, tmp_path: Path) -> None:
    lease = {**OFF, "PENSTOCK_LEASE_SECONDS": "1"}
    with running(engine, redis_url, prefix, tmp_path, environment=lease) as worker:
        handle = worker.producer.enqueue(Sleep(seconds=600))
        until(lambda: [job.id for job in status(worker).running] == [handle.id], "the running job")
        worker.process.kill()
        worker.process.wait()
        until(lambda: status(worker).state == "dead", "the end of its lease")
        assert (status(worker).running, status(worker).abandoned) == ([], 1)


def test_a_dispatcher_stops_as_a_person_orders(url: str, prefix: str, ledger: Database) -> None:
    settings = Settings(broker_url=url, database_url=ledger.url, prefix=prefix, stock_queues=(), lease_seconds=3.0)
    ordered: list[bool] = []
    dispatcher = Dispatcher(settings, lambda: ordered.append(True))
    dispatcher.start()
    try:
        [member] = until(lambda: read_members(ledger, settings.lease), "the dispatcher")
        assert (member.member.engine, member.state, member.member.concurrency) == ("dispatcher", "running", None)
        give_order(ledger, member.member.name, "stop", actor="ann", lease=LEASE)
        until(lambda: ordered, "the order")
    finally:
        dispatcher.stop()
    [member] = read_members(ledger, settings.lease, since=timedelta(hours=1))
    assert member.state == "stopped"


def test_an_order_to_a_worker_that_no_one_knows_is_refused(ledger: Database) -> None:
    with pytest.raises(WorkerNotFound, match="penstock workers list"):
        give_order(ledger, "celery@gone", "stop", actor="ann", lease=LEASE)
