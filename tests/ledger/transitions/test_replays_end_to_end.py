"""A job that died in a real worker, fixed by an operator."""

from __future__ import annotations

import pytest

from penstock.config.errors import JobFailed
from penstock.ledger.queries import dead_letters
from penstock.ledger.queries.dead_letters import Selection
from penstock.ledger.rows.fingerprints import Frame, last_own_frame
from penstock.ledger.transitions import replay as replays
from penstock.schemas import Job, RetryPolicy, Sensitive, State
from penstock.workers import handles
from penstock.workers.engines.inline import Inline

_STRICT = RetryPolicy(max_attempts=1)


class Greet(Job, kind="replays.greet", queue="replayed", retry=_STRICT):
    name: str
    token: Sensitive[str] = "wrong"


class Divide(Job, kind="replays.divide", queue="replayed", retry=_STRICT):
    by: int


@handles(Greet)
async def greet(job: Greet) -> str:
    if job.token != "right":
        raise PermissionError(f"no entry for {job.name!r}")
    return f"hello {job.name}"


@handles(Divide)
def divide(job: Divide) -> float:
    return _quotient(1, job.by)


def _quotient(what: int, by: int) -> float:
    return what / by


def test_a_job_with_an_edited_payload_ends_under_the_handle_that_its_producer_has() -> None:
    with Inline(queues=["replayed"]) as penstock:
        handles_of = [penstock.producer.enqueue(Greet(name=name)) for name in ("ada", "bob")]
        other = penstock.producer.enqueue(Divide(by=0))
        penstock.drain()
        for handle in (*handles_of, other):
            with pytest.raises(JobFailed):
                handle.result(timeout=60)
        largest, smaller = dead_letters.groups(penstock.database)
        assert (largest.count, largest.kind, smaller.newest_id) == (2, "replays.greet", other.id)
        [attempt] = dead_letters.show(penstock.database, other.id).attempts
        assert last_own_frame(attempt.traceback) == Frame("transitions/test_replays_end_to_end.py", "_quotient")
        chosen = Selection(group=largest.fingerprint)
        replays.replay(penstock.database, chosen, actor="ada", edit={"token": "right"})
        penstock.drain()
        assert [handle.result(timeout=60) for handle in handles_of] == ["hello ada", "hello bob"]
        status = handles_of[0].status()
        assert (status.state, status.failures, status.attempt) == (State.SUCCEEDED, 0, 1)
        assert [dead_letter.id for dead_letter in dead_letters.find(penstock.database)] == [other.id]
