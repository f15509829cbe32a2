from __future__ import annotations

import os
import socket
from datetime import timedelta

import pytest
import sqlalchemy as sa
from support.ledgers import LEASE, Note, Ring, attempts_of, change, claimed, message, row_of, start_worker

from penstock.ledger.members import heartbeats
from penstock.ledger.members.heartbeats import record_worker_exit
from penstock.ledger.rows import suspect_runs
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import workers
from penstock.ledger.transitions.abandoned import bury_abandoned
from penstock.ledger.transitions.claim import ClaimRequest, claim
from penstock.ledger.transitions.lost import put_back_running
from penstock.schemas import State
from penstock.workers.executor.attempt.memory import peak_memory
from penstock.workers.executor.attempt.outcome import quarantined

DEAD = timedelta(seconds=-1)
WHERE = f"host {socket.gethostname()}, pid {os.getpid()}"


def entered(ledger: Database, name: str, **values: object) -> None:
    statement = sa.update(workers).where(workers.c.name == name).values(**values)
    ledger.write(lambda connection: connection.execute(statement))


def row(ledger: Database, name: str) -> object:
    select = sa.select(workers.c.ended, workers.c.peak_memory_bytes).where(workers.c.name == name)
    return ledger.read(lambda connection: connection.execute(select).first())


def test_a_heartbeat_records_the_peak_memory_of_a_worker(ledger: Database) -> None:
    start_worker(ledger, "w1")
    assert row(ledger, "w1") == (None, None)
    heartbeats.beat(ledger, "w1", lease=LEASE, peak_memory_bytes=peak_memory())
    assert row(ledger, "w1")[1] > 1_000_000  # type: ignore[index]


def test_a_crash_names_host_process_signal_and_peak_of_memory(ledger: Database) -> None:
    start_worker(ledger, "w1", lease=DEAD)
    sent = message(Note())
    claimed(ledger, sent, worker="w1")
    record_worker_exit(ledger, os.getpid(), "SIGKILL", 300 * 2**20)
    claim = claimed(ledger, sent, worker="w2", again=True)
    [crash] = attempts_of(ledger, sent.id)
    expected = f"worker w1 died or fell silent while it ran this ({WHERE}; ended with SIGKILL; peak memory 300 MiB)"
    assert crash.error == expected
    claim.quarantine = True
    assert quarantined(claim).error == f"its worker crashed 1 times while it ran, the last time: {expected}"


def test_an_unobserved_death_is_described_as_unknown(ledger: Database) -> None:
    start_worker(ledger, "w1", lease=DEAD)
    sent, gone = message(Note()), message(Note())
    claimed(ledger, sent, worker="w1")
    claimed(ledger, gone, worker="pruned")
    claimed(ledger, sent, worker="w2", again=True)
    claimed(ledger, gone, worker="w2", again=True)
    [crash] = attempts_of(ledger, sent.id)
    assert f"({WHERE}; how it ended is not known)" in crash.error
    [crash] = attempts_of(ledger, gone.id)
    assert crash.error == "worker pruned died or fell silent while it ran this"


def test_a_worker_restarted_under_its_name_is_not_taken_for_the_dead_one(ledger: Database) -> None:
    start_worker(ledger, "w1", lease=DEAD)
    sent = message(Note())
    claimed(ledger, sent, worker="w1")
    start_worker(ledger, "w1")
    record_worker_exit(ledger, os.getpid(), "SIGKILL", None)
    claimed(ledger, sent, worker="w1", again=True)
    [crash] = attempts_of(ledger, sent.id)
    assert crash.error == "worker w1 died or fell silent while it ran this"


def test_a_death_is_entered_for_the_worker_that_was_started_last_and_once(ledger: Database) -> None:
    start_worker(ledger, "old")
    start_worker(ledger, "new")
    heartbeats.beat(ledger, "new", lease=LEASE, peak_memory_bytes=peak_memory())
    record_worker_exit(ledger, os.getpid(), "exit code 1", None)
    record_worker_exit(ledger, os.getpid(), "SIGTERM", None)
    assert row(ledger, "old") == (None, None)
    assert row(ledger, "new")[0] == "exit code 1"  # type: ignore[index]
    assert row(ledger, "new")[1] is not None  # type: ignore[index]


def test_the_death_of_an_unknown_or_stopped_worker_is_not_recorded(ledger: Database) -> None:
    start_worker(ledger, "stopped")
    heartbeats.sign_off(ledger, "stopped")
    start_worker(ledger, "elsewhere")
    entered(ledger, "elsewhere", host="another")
    record_worker_exit(ledger, os.getpid(), "SIGKILL", 1)
    record_worker_exit(ledger, 2**22 + 1, "SIGKILL", 1)
    assert row(ledger, "stopped") == (None, None)
    assert row(ledger, "elsewhere") == (None, None)


def test_a_job_that_must_not_run_twice_dies_with_the_facts(ledger: Database) -> None:
    start_worker(ledger, "w1", lease=DEAD)
    sent = message(Ring(number="1"))
    claimed(ledger, sent, worker="w1")
    record_worker_exit(ledger, os.getpid(), "SIGSEGV", None)
    assert bury_abandoned(ledger) == [sent.id]
    assert "ended with SIGSEGV" in row_of(ledger, sent.id).error


@pytest.mark.parametrize("find", ["claim", "put back"])
def test_a_job_that_ran_in_a_process_of_its_own_is_spared_the_crash_of_its_worker(ledger: Database, find: str) -> None:
    start_worker(ledger, "w2")
    start_worker(ledger, "w1", lease=-LEASE)
    sent = message(Note())

    def crashes() -> int:
        """Crashes of the job after the next death of its worker."""
        if find == "claim":
            return claimed(ledger, sent, worker="w1", again=True).crashes
        assert put_back_running(ledger, timedelta(), ("notes", "normal")) == 1
        change(ledger, sent.id, state=State.RUNNING, worker="w1")
        crashes: int = row_of(ledger, sent.id).crashes
        return crashes

    claimed(ledger, sent, worker="w1")
    assert crashes() == 1
    for _ in range(suspect_runs.MOST_DEATHS):
        run_apart(ledger, sent.id)
        assert crashes() == 1
        assert "does not count as a crash of this job" in attempts_of(ledger, sent.id)[-1].error
    run_apart(ledger, sent.id)
    assert crashes() == 2, "it may kill its workers from there, and is spared no more"


def run_apart(ledger: Database, job_id: str, later: int = 0) -> None:
    fence = row_of(ledger, job_id).fence + later
    ledger.write(lambda connection: suspect_runs.begin(connection, ledger, {job_id: fence}))


def test_a_claim_puts_its_suspects_on_record_as_apart_at_once(ledger: Database) -> None:
    """A worker that dies before it has started their processes was not killed by them."""
    start_worker(ledger, "w1", lease=-LEASE)
    first, suspect = message(Note()), message(Note())
    requests = [ClaimRequest(sent, True, 3) for sent in (first, suspect)]
    claimed(ledger, suspect, worker="w1")
    for _ in range(4):
        claims = claim(ledger, requests, worker="w1", apart=True)
        assert claims[1].crashes == 1  # type: ignore[union-attr]
    assert claims[0].crashes == 1, "its first crash happened among others"  # type: ignore[union-attr]


def test_a_claim_of_a_worker_that_has_no_processes_for_suspects_spares_none(ledger: Database) -> None:
    start_worker(ledger, "w1", lease=-LEASE)
    sent = message(Note())
    assert [claimed(ledger, sent, worker="w1", again=True).crashes for _ in range(3)] == [0, 1, 2]


def test_a_run_apart_that_is_over_spares_no_later_one(ledger: Database) -> None:
    start_worker(ledger, "w1", lease=-LEASE)
    sent = message(Note())
    claimed(ledger, sent, worker="w1")
    fence = claimed(ledger, sent, worker="w1", again=True).fence
    run_apart(ledger, sent.id, -1)
    assert claimed(ledger, sent, worker="w1", again=True).crashes == 2
    run_apart(ledger, sent.id)
    suspect_runs.end(ledger, sent.id, fence + 1)
    assert claimed(ledger, sent, worker="w1", again=True).crashes == 3


def test_an_untracked_job_is_spared_deaths_by_its_deliveries(ledger: Database) -> None:
    """The broker's count of deliveries takes the place of the fence, and asking again counts no death again."""
    assert suspect_runs.begin_untracked(ledger, "j1", 2) == 0, "it did not run apart when its worker died"
    for deliveries in range(3, suspect_runs.MOST_DEATHS + 6):
        deaths = min(deliveries - 2, suspect_runs.MOST_DEATHS)
        assert suspect_runs.begin_untracked(ledger, "j1", deliveries) == deaths
        assert suspect_runs.begin_untracked(ledger, "j1", deliveries) == deaths
    suspect_runs.end(ledger, "j1", 0)
    assert suspect_runs.begin_untracked(ledger, "j1", 99) == 0
