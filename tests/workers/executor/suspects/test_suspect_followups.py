"""Callbacks of a Celery client, webhooks and enqueued jobs after a suspect: each is sent once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery
from support.ledgers import stock_envelope
from support.polling import until
from workers.executor.bench import Bench
from workers.executor.suspects.cutting import cut_off_envelope
from workers.executor.suspects.suspect_jobs import EFFECTS, Coroutine, Fragile, Function, Suspect

from penstock.config.sections.events import OutgoingWebhookSettings
from penstock.ledger.sql.tables import jobs
from penstock.schemas.states import FINAL

APP = Celery(broker="memory://", set_as_current=False)
BOTH = pytest.mark.parametrize("kind", [Coroutine, Function])


def follower(**fields: Any) -> dict[str, Any]:
    return dict(APP.signature("suspect.next", immutable=True, kwargs={}, **fields))


@pytest.fixture(autouse=True)
def prepared(bench: Bench) -> None:
    EFFECTS.metadata.create_all(bench.database.engine)
    hook = OutgoingWebhookSettings(url="https://example.org/", secret="c2VjcmV0LXNlY3JldC1zZWNyZXQ=")
    bench.settings = bench.settings.model_copy(update={"hooks": {"shop": hook}})


def run(bench: Bench, kind: type[Suspect], what: str) -> Any:
    """The row of a job at its end, after a crash of its worker. Celery's client wants three jobs after it."""
    embed = {"callbacks": [follower()], "chain": [follower(task_id="chained")], "errbacks": [follower()]}
    envelope = stock_envelope(kind.kind().name, {"what": what}, queue="ex", embed=embed)
    cut_off_envelope(bench, envelope)
    bench.worker(engine="test")
    return until(lambda: next(iter(bench.rows(jobs, jobs.c.id == envelope.id, jobs.c.state.in_(FINAL))), None))


def following(bench: Bench, job_id: str) -> Counter[str]:
    """Kinds of the jobs on record but this one."""
    until(bench.idle)
    kinds = Counter(row.kind for row in bench.rows(jobs, jobs.c.id != job_id))
    assert {row.state for row in bench.rows(jobs, jobs.c.id != job_id)} <= {"scheduled"}
    return kinds


@BOTH
@pytest.mark.parametrize(("what", "enqueued"), [("fine", 1), ("session", 1), ("once", 0)])
def test_callbacks_chain_webhook_and_enqueued_jobs_follow_a_success_once(
    bench: Bench, kind: type[Suspect], what: str, enqueued: int
) -> None:
    row = run(bench, kind, what)
    assert (row.state, row.crashes) == ("succeeded", 1)
    assert following(bench, row.id) == {"suspect.next": 2 + enqueued, "webhook.deliver": 1}


@BOTH
def test_errback_and_webhook_follow_a_failure_once(bench: Bench, kind: type[Suspect]) -> None:
    row = run(bench, kind, "session and fail")
    assert (row.state, row.failures) == ("dead", 1)
    assert following(bench, row.id) == {"suspect.next": 1, "webhook.deliver": 1}


def test_errback_and_webhook_follow_the_last_crash_once(bench: Bench) -> None:
    row = run(bench, Fragile, "exit")
    assert (row.state, row.crashes) == ("dead", 2)
    assert following(bench, row.id) == {"suspect.next": 1, "webhook.deliver": 1}


@BOTH
def test_a_child_that_dies_after_its_commit_has_succeeded(bench: Bench, kind: type[Suspect]) -> None:
    """The session has committed with the outcome, and the answer never comes."""
    row = run(bench, kind, "session and die after")
    assert (row.state, row.crashes, row.failures) == ("succeeded", 1, 0)
    assert following(bench, row.id) == {"suspect.next": 3, "webhook.deliver": 1}
    stored = bench.database.read(lambda connection: connection.scalars(sa.select(EFFECTS.c.job_id)).all())
    assert list(stored) == [row.id]
