"""Pauses on every engine and broker: they hold over restarts of workers, and nothing is lost or counted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import acme
import pytest
import sqlalchemy as sa
from support.polling import WAIT_SECONDS, until, until_quiet
from support.stack import Stack, lines

from penstock.ledger.members import controls
from penstock.ledger.members.controls import Scope
from penstock.ledger.sql.tables import jobs
from penstock.producers.explain import explain
from penstock.schemas import State

JOBS = 200


@pytest.mark.parametrize(("scope", "name"), [("queue", "acme"), ("kind", "acme.markonce"), ("all", "")])
def test_a_pause_holds_over_a_restart_and_loses_no_job(
    own_stack: Stack, tmp_path: Path, scope: Scope, name: str
) -> None:
    stack, file = own_stack, tmp_path / "runs"
    worker = stack.start_worker(concurrency=4)
    sent = [acme.MarkOnce(file=str(file), text=str(number), seconds=0.02) for number in range(JOBS)]
    handles = stack.producer.enqueue_many(sent)
    until(lambda: len(lines(file)) >= 20, "some runs")
    controls.pause(stack.database, scope, name, actor="ada", reason="a deploy")
    started = until_quiet(lambda: len(lines(file)))
    assert started < JOBS
    stack.stop_process(worker)
    stack.start_worker(concurrency=4)
    until(stack.live_workers, "the next worker")
    other = stack.producer.enqueue(acme.Add(a=1, b=2))
    if scope == "kind":
        assert other.wait(WAIT_SECONDS).result["sum"] == 3
    assert until_quiet(lambda: len(lines(file))) == started
    waiting = next(handle.id for handle in handles if handle.status().state not in (State.SUCCEEDED, State.RUNNING))
    because = explain(stack.database, waiting, queues=["acme"]).because
    if stack.row(waiting) is not None:
        assert "is paused by ada since" in because
        assert "(a deploy)" in because
    ended = controls.resume(stack.database, scope, name, actor="ada")
    assert ended is not None
    assert {handle.wait(WAIT_SECONDS).state for handle in (*handles, other)} == {State.SUCCEEDED}
    assert sorted(map(int, lines(file))) == list(range(JOBS))
    attempts = sa.select(jobs.c.attempt, sa.func.count()).group_by(jobs.c.attempt)
    rows = stack.database.read(lambda connection: connection.execute(attempts).all())
    assert [tuple(row) for row in rows] == [(1, JOBS + 1)]


def test_a_pause_ends_by_itself(own_stack: Stack, tmp_path: Path) -> None:
    stack = own_stack
    before = datetime.now(UTC)
    controls.pause(stack.database, "kind", "acme.mark", actor="ada", until=timedelta(seconds=3))
    handle = stack.producer.enqueue(acme.Mark(file=str(tmp_path / "runs"), text="x"))
    stack.start_worker()
    status = handle.wait(WAIT_SECONDS)
    assert (status.state, status.attempt) == (State.SUCCEEDED, 1)
    row = stack.row(handle.id)
    assert row.finished_at - before >= timedelta(seconds=3)
