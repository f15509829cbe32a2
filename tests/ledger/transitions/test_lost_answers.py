"""Databases that commit and are gone before they can say so; and transactions that get in each other's way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from support.ledgers import Note, Pay, Ring, attempt_outcome, attempts_of, message, row_of, set_up, start_worker
from support.servers.proxy import Proxy

from penstock.config.errors import LedgerUnavailable
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs
from penstock.ledger.transitions.claim import Claim, ClaimRequest, Refusal, claim
from penstock.ledger.transitions.outcome import record
from penstock.schemas import Job, Outcome, State
from penstock.workers.executor.attempt.session import Sessions

Cut = Callable[[Callable[[], object]], None]


@pytest.fixture(
    params=[
        pytest.param("postgres", marks=pytest.mark.postgres),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ]
)
def ledger_url(request: pytest.FixtureRequest) -> str:
    """The databases that speak over a network, instead of all."""
    return set_up(str(request.getfixturevalue(f"{request.param}_url")))


@pytest.fixture
def proxy(ledger_url: str) -> Iterator[Proxy]:
    proxy = Proxy(sa.make_url(ledger_url).port or 0)
    yield proxy
    proxy.close()


@pytest.fixture
def distant(ledger_url: str, proxy: Proxy) -> Iterator[Database]:
    """The ledger through the proxy."""
    url = sa.make_url(ledger_url).set(host="127.0.0.1", port=proxy.port)
    database = Database(url.render_as_string(hide_password=False))
    yield database
    database.close()


@pytest.fixture
def cut_at_commit(distant: Database, proxy: Proxy) -> Cut:
    """Runs work whose commit is done, and its answer lost with the connection."""

    def cut(work: Callable[[], object]) -> None:
        def silence(connection: sa.Connection, *statement: Any) -> None:
            proxy.silent = not statement or connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"

        for moment in ("commit", "before_cursor_execute"):
            event.listen(distant.engine, moment, silence)
        with pytest.raises(LedgerUnavailable):
            work()
        for moment in ("commit", "before_cursor_execute"):
            event.remove(distant.engine, moment, silence)
        proxy.silent = False

    return cut


@pytest.mark.parametrize(
    "job", [Note(), Pay(amount=1), Ring(number="1")], ids=["at_least_once", "once", "at_most_once"]
)
def test_a_claim_whose_answer_was_lost_is_given_when_asked_again(
    job: Job, distant: Database, ledger: Database, cut_at_commit: Cut
) -> None:
    start_worker(ledger, "w1")
    sent = message(job)
    requests = [ClaimRequest(sent, False, max_crashes=1)]
    cut_at_commit(lambda: claim(distant, requests, worker="w1"))
    assert row_of(ledger, sent.id).state == State.RUNNING
    [other] = claim(ledger, requests, worker="w2", asked_before=True)
    assert isinstance(other, Refusal)  # it is not that worker's claim
    [claims] = claim(distant, requests, worker="w1", asked_before=True)
    assert isinstance(claims, Claim)
    assert (claims.attempt, claims.crashes, claims.quarantine) == (1, 0, False)
    assert attempts_of(ledger, sent.id) == []
    assert record(distant, [attempt_outcome(claims, Outcome.SUCCEEDED)], worker="w1") == [True]
    [again] = claim(distant, requests, worker="w1", asked_before=True)
    assert isinstance(again, Refusal)


def test_an_outcome_whose_answer_was_lost_is_recorded_once(
    distant: Database, ledger: Database, cut_at_commit: Cut
) -> None:
    start_worker(ledger, "w1")
    sent = message(Note())
    [claims] = claim(ledger, [ClaimRequest(sent, False, max_crashes=3)], worker="w1")
    assert isinstance(claims, Claim)
    ended = attempt_outcome(claims, Outcome.RETRY)
    cut_at_commit(lambda: record(distant, [ended], worker="w1"))
    assert record(distant, [ended], worker="w1") == [False]
    assert row_of(ledger, sent.id).state == State.RETRYING
    assert len(attempts_of(ledger, sent.id)) == 1


def test_transactions_that_lock_the_same_rows_in_opposite_orders_both_commit(ledger: Database) -> None:
    """The database ends one of the two; it is run again."""
    start_worker(ledger, "w1")
    sent = [message(Note()) for _ in range(2)]
    claim(ledger, [ClaimRequest(job, False, max_crashes=3) for job in sent], worker="w1")
    both_hold_one = threading.Barrier(2)
    tries: list[str] = []

    def add(first: str, second: str) -> None:
        met = False

        def increment(connection: sa.Connection) -> None:
            nonlocal met
            tries.append(first)
            for job_id in (first, second):
                statement = sa.update(jobs).where(jobs.c.id == job_id).values(failures=jobs.c.failures + 1)
                connection.execute(statement)
                if not met:
                    met = True
                    both_hold_one.wait(60)

        ledger.write(increment)

    ids = [job.id for job in sent]
    threads = [threading.Thread(target=add, args=order) for order in (ids, ids[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tries) >= 3  # one of them was a victim
    assert [row_of(ledger, job_id).failures for job_id in ids] == [2, 2]


def test_handlers_that_hold_many_sessions_leave_the_ledger_its_connections(ledger: Database) -> None:
    sessions = Sessions(ledger, "w1", most=20)
    held = [sessions.open() for _ in range(20)]
    for session in held:
        session.execute(sa.text("SELECT 1"))
    start_worker(ledger, "w1")
    sent = message(Note())
    [claims] = claim(ledger, [ClaimRequest(sent, False, max_crashes=3)], worker="w1")
    assert isinstance(claims, Claim)
    for session in held:
        session.close()
    asyncio.run(sessions.close())


@pytest.mark.parametrize("ledger_url", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
def test_a_transaction_that_cannot_be_serialised_is_run_again(ledger: Database) -> None:
    # MariaDB waits in place of refusing.
    start_worker(ledger, "w1")
    sent = message(Note())
    claim(ledger, [ClaimRequest(sent, False, max_crashes=3)], worker="w1")
    add = sa.update(jobs).where(jobs.c.id == sent.id).values(failures=jobs.c.failures + 1)
    tries: list[int] = []

    def increment(connection: sa.Connection) -> None:
        connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        connection.execute(sa.select(jobs.c.failures).where(jobs.c.id == sent.id)).one()
        tries.append(1)
        if len(tries) == 1:
            with ledger.engine.begin() as other:
                other.execute(add)
        connection.execute(add)

    ledger.write(increment)
    assert len(tries) == 2
    assert row_of(ledger, sent.id).failures == 2
