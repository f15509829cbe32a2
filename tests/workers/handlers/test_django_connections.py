"""Connections of Django's ORM, in a worker of each engine: closed around attempts, and replaced when they were cut."""

from __future__ import annotations

import uuid

import pytest
import sqlalchemy as sa
from depot.jobs import CacheInCoroutine, CacheInThread, Count, InChild, InCoroutine, InPool, InThread, LeaveOpen, Wait
from support.polling import until
from workers.handlers.conftest import Depot

from penstock.schemas import Job, State

AT_A_TIME = 4
IN_PROCESS = [InThread, InCoroutine, InPool]


def together(kind: type[Count]) -> list[Count]:
    """Jobs that only end when all of them run, each with a connection."""
    name = uuid.uuid4().hex
    return [kind(name=name, others=AT_A_TIME - 1) for _ in range(AT_A_TIME)]


@pytest.mark.parametrize("kind", IN_PROCESS)
def test_next_jobs_of_every_thread_work_after_all_connections_were_cut(persistent: Depot, kind: type[Count]) -> None:
    before = set(persistent.run(*together(kind)))
    assert len(before) == AT_A_TIME
    assert before <= persistent.connections()
    assert persistent.cut() >= AT_A_TIME
    after = set(persistent.run(*together(kind)))
    assert len(after) == AT_A_TIME
    assert not before & after


@pytest.mark.parametrize("kind", IN_PROCESS)
def test_persistent_connections_are_used_by_later_jobs(persistent: Depot, kind: type[Count]) -> None:
    first = set(persistent.run(*together(kind)))
    for _ in range(3):
        assert set(persistent.run(*together(kind))) <= persistent.connections()
    assert len(persistent.connections()) <= 8 + 8 + 32  # threads of handlers, of coroutines, and of `to_thread`
    assert first <= persistent.connections()


@pytest.mark.parametrize("kind", IN_PROCESS)
def test_idle_connections_do_not_pile_up_without_a_maximum_age(closing: Depot, kind: type[Count]) -> None:
    for _ in range(3):
        closing.run(*together(kind))
    until(lambda: closing.connections() == set())


def test_isolated_handlers_use_the_orm_with_a_connection_that_ends_with_them(persistent: Depot) -> None:
    used = [persistent.run(InChild(name=uuid.uuid4().hex))[0] for _ in range(3)]
    assert len(set(used)) == 3
    until(lambda: not set(used) & persistent.connections())


def test_slow_query_of_a_coroutine_holds_up_no_other_and_not_its_own_timeout(persistent: Depot) -> None:
    lock = uuid.uuid4().int % 2**31
    with persistent.server.connect() as connection:
        connection.execute(sa.text("SELECT pg_advisory_lock(:lock)"), {"lock": lock})
        waiting = persistent.producer.enqueue(Wait(lock=lock))
        until(lambda: waiting.status().state == State.RUNNING)
        assert len(set(persistent.run(*together(InCoroutine)))) == AT_A_TIME
        until(lambda: waiting.status().state == State.DEAD)
        assert "TimedOut" in str(waiting.status().error)
        assert len(set(persistent.run(*together(InCoroutine)))) == AT_A_TIME
        connection.execute(sa.text("SELECT pg_advisory_unlock(:lock)"), {"lock": lock})


def test_transaction_that_a_handler_never_ended_does_not_reach_the_next_job(persistent: Depot) -> None:
    for _ in range(8):
        [left_open] = persistent.run(LeaveOpen())
        [later] = persistent.run(InThread(name=uuid.uuid4().hex))
        assert left_open != later
    until(lambda: left_open not in persistent.connections())


@pytest.mark.parametrize("kind", [CacheInThread, CacheInCoroutine])
def test_connections_of_the_cache_are_kept_for_later_jobs(persistent: Depot, kind: type[Job]) -> None:
    for _ in range(10):
        assert persistent.run(*(kind() for _ in range(8))) == [7] * 8
    assert 0 < persistent.cache_connections() < 40  # of 80 jobs, 8 at a time
