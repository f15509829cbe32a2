"""Jobs of RQ, run by our worker: RQ's records are as after its own, and the ledger has them, too."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import redis
import rq
from rq import Callback, Queue, Repeat, Retry
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend
from support.ledgers import letters
from support.polling import WAIT_SECONDS, until
from support.stack import TESTS
from workers.migration.rq_jobs.conftest import Adopted
from workers.migration.rq_jobs.functions import (
    add,
    broken_callback,
    fail,
    fail_once,
    retry,
    runs,
    sleep,
    terminated,
    thing,
    until_abandoned,
)

from penstock.config.errors import BrokerUnavailable
from penstock.ledger.transitions.replay.replay import replay_one
from penstock.workers.engines.rq.attempt import AttemptWorker
from penstock.workers.engines.rq.intake import RqQueues
from penstock.workers.engines.rq.registries import clean


def test_result_is_in_both_records(adopted: Adopted) -> None:
    job = adopted.queue.enqueue(add, 1, b=2)
    row = adopted.until_ended(job, "finished")
    assert (job.return_value(), adopted.results(job), len(adopted.queue)) == (3, ["SUCCESSFUL"], 0)
    assert (row.kind, row.queue, row.state, row.result, row.key) == ("rq.slow", "slow", "succeeded", "3", job.id)
    payload = json.loads(row.payload)
    assert payload["function"] == "workers.migration.rq_jobs.functions.add"
    assert payload["description"] == "workers.migration.rq_jobs.functions.add(1, b=2)"
    assert job.id in adopted.queue.finished_job_registry
    assert adopted.queue.started_job_registry.count == 0


def test_result_that_json_cannot_hold_is_text_in_the_ledger(adopted: Adopted) -> None:
    job = adopted.queue.enqueue(thing)
    assert json.loads(adopted.until_ended(job, "finished").result)["repr"] == "LookupError(1)"
    assert isinstance(job.return_value(), LookupError)


def test_serializer_of_the_client_is_recognised(adopted: Adopted) -> None:
    queue = Queue("slow", connection=adopted.connection, serializer=JSONSerializer)
    job = queue.enqueue(add, 1)
    adopted.until_ended(job, "finished")
    assert job.return_value() == 1


def test_failure_is_a_dead_letter_and_a_replay_runs_it_again(adopted: Adopted) -> None:
    job = adopted.queue.enqueue(fail_once)
    row = adopted.until_ended(job, "failed")
    assert (row.state, row.error) == ("dead", "ValueError: boom")
    assert "in fail_once" in adopted.attempts(row)[0].traceback
    assert adopted.queue.failed_job_registry.get_job_ids() == [job.id]
    replay_one(adopted.inline.database, row.id, actor="test")
    row = adopted.until_ended(job, "finished")
    assert (row.state, row.result) == ("succeeded", '"done"')
    assert (adopted.results(job), adopted.queue.failed_job_registry.count) == (["FAILED", "SUCCESSFUL"], 0)


def test_failure_that_rq_sends_again_is_another_job_of_the_same_key(adopted: Adopted) -> None:
    job = adopted.queue.enqueue(fail_once)
    adopted.until_ended(job, "failed")
    job.requeue()
    adopted.until_ended(job, "finished")
    assert [row.state for row in adopted.rows(job)] == ["dead", "succeeded"]


@pytest.mark.parametrize("interval", [0, 1])
def test_retry_is_an_attempt_of_the_same_job(adopted: Adopted, interval: int) -> None:
    job = adopted.queue.enqueue(fail_once, retry=Retry(max=2, interval=interval))
    row = adopted.until_ended(job, "finished")
    [failed] = adopted.attempts(row)
    assert (failed.outcome, failed.error, row.state, row.attempt) == ("retry", "ValueError: boom", "succeeded", 2)
    assert "in fail_once" in failed.traceback
    assert (row.started_at - failed.finished_at).total_seconds() >= 0.9 * interval
    assert (len(adopted.rows(job)), adopted.queue.scheduled_job_registry.count) == (1, 0)


def test_retries_end_with_a_dead_letter(adopted: Adopted) -> None:
    job = adopted.queue.enqueue(fail, retry=Retry(max=2))
    row = adopted.until_ended(job, "failed")
    assert [attempt.outcome for attempt in adopted.attempts(row)] == ["retry", "retry", "dead"]
    [letter] = letters(adopted.service._database)
    assert letter.detail == "ValueError: boom (its Retry is exhausted)"


def test_job_that_is_stopped_has_not_failed_for_rq(adopted: Adopted) -> None:
    job = adopted.queue.enqueue(terminated, retry=Retry(max=2))
    adopted.until_ended(job, "stopped")
    job.refresh()
    assert job.retries_left == 2


def test_returned_retry_is_an_attempt_of_the_same_job(adopted: Adopted) -> None:
    job = adopted.queue.enqueue(retry)
    row = adopted.until_ended(job, "finished")
    [failed] = adopted.attempts(row)
    assert (failed.outcome, failed.error) == ("retry", "it returned RQ's Retry")
    assert adopted.results(job) == ["RETRIED", "SUCCESSFUL"]


def test_retry_that_is_returned_too_often_is_a_dead_letter(adopted: Adopted) -> None:
    job = adopted.queue.enqueue(retry, 9)
    row = adopted.until_ended(job, "failed")
    assert (row.state, runs.count(job.id)) == ("dead", 2)


def test_repeats_are_jobs_of_the_same_key(adopted: Adopted) -> None:
    job = adopted.queue.enqueue(add, 1, repeat=Repeat(times=2))
    for _ in range(3):
        adopted.run()
    assert [row.state for row in adopted.rows(job)] == ["succeeded"] * 3


def test_dependent_waits_for_its_job(adopted: Adopted) -> None:
    first = adopted.queue.enqueue(add, 1)
    second = adopted.queue.enqueue(add, 2, depends_on=first)
    assert second.get_status() == "deferred"
    adopted.until_ended(second, "finished")
    assert runs == [first.id, second.id]


def test_scheduled_job_runs_when_it_is_due(adopted: Adopted) -> None:
    job = adopted.queue.enqueue_in(timedelta(seconds=1), add, 1)
    adopted.run()
    assert (job.get_status(), runs) == ("scheduled", [])
    adopted.until_ended(job, "finished")


def test_time_limit_ends_a_function(adopted: Adopted) -> None:
    job = adopted.queue.enqueue(sleep, job_timeout=1)
    row = adopted.until_ended(job, "failed")
    assert row.error == "JobTimeoutException: Task exceeded maximum timeout value (1 seconds)"


def test_job_without_a_time_limit_is_not_abandoned_by_rq(adopted: Adopted) -> None:
    job = adopted.queue.enqueue(until_abandoned, job_timeout=-1)
    adopted.until_ended(job, "finished")
    assert job.return_value() > 86400


def test_callback_that_fails_makes_the_job_a_failure_as_in_rq(adopted: Adopted) -> None:
    job = adopted.queue.enqueue(add, 1, on_success=Callback(broken_callback))
    assert adopted.until_ended(job, "failed").error == "RuntimeError: no callback for 1"


def test_function_that_is_missing_is_named(adopted: Adopted) -> None:
    job = adopted.queue.enqueue("nowhere.at_all")
    row = adopted.until_ended(job, "failed")
    assert row.state == "dead"
    assert "nowhere.at_all" in adopted.attempts(row)[0].traceback


def test_cancelled_and_deleted_jobs_are_discarded(adopted: Adopted) -> None:
    cancelled, deleted = adopted.queue.enqueue(add, 1), adopted.queue.enqueue(add, 2)
    ids = adopted.queue.get_job_ids()
    adopted.service.run_once()
    cancelled.cancel()
    deleted.delete()
    adopted.run()
    rows = [adopted.rows(job)[0] for job in (cancelled, deleted)]
    assert [(row.state, row.error) for row in rows] == [
        ("discarded", "it was cancelled through RQ"),
        ("discarded", "RQ has no record of it: its ttl has passed, or it was deleted"),
    ]
    assert (ids, runs) == ([cancelled.id, deleted.id], [])


def test_outage_of_the_redis_of_rq_costs_no_attempt(adopted: Adopted, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(worker: AttemptWorker) -> None:
        raise redis.ConnectionError("refused")

    job = adopted.queue.enqueue(add, 1)
    with monkeypatch.context() as outage:
        outage.setattr(AttemptWorker, "run", refuse)
        adopted.service.run_once()
        adopted.start()
        row = until(lambda: [row for row in adopted.rows(job) if row.state == "scheduled"])[0]
    assert (row.error, row.failures) == ("RQ's Redis: ConnectionError: refused", 0)
    adopted.until_ended(job, "finished")


def test_job_without_a_record_is_dropped_as_by_rq(adopted: Adopted) -> None:
    adopted.queue.push_job_id("gone")
    job = adopted.queue.enqueue(add, 1)
    adopted.until_ended(job, "finished")
    assert len(adopted.queue) == 0


def test_records_that_cannot_be_read_are_dead_letters(adopted: Adopted) -> None:
    time = "2026-01-01T00:00:00.000000Z"
    for rq_id, created_at in ((b"\xff", time), (b"late", "yesterday"), (b"x" * 300, time)):
        adopted.connection.hset(b"rq:job:" + rq_id, "created_at", created_at)
        adopted.connection.rpush(adopted.queue.key, rq_id)
    adopted.connection.zadd(adopted.queue.scheduled_job_registry.key, {b"\xff": 1})
    job = adopted.queue.enqueue(add, 1)
    adopted.until_ended(job, "finished")
    assert (
        sorted((letter.queue, letter.reason) for letter in letters(adopted.inline.database))
        == [("slow", "undecodable")] * 3
    )
    assert adopted.connection.keys("*penstock") == []


def test_job_that_is_taken_in_twice_runs_once(adopted: Adopted) -> None:
    """A dispatcher that dies between the sending and the removal leaves it in the queue."""
    job = adopted.queue.enqueue(add, 1)
    adopted.run()
    adopted.queue.push_job_id(job.id)
    adopted.run()
    assert (runs, len(adopted.rows(job)), len(adopted.queue)) == ([job.id], 1, 0)


def test_outage_of_the_broker_loses_none(adopted: Adopted, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(envelopes: object) -> None:
        raise BrokerUnavailable("down")

    job = adopted.queue.enqueue(add, 1)
    with monkeypatch.context() as outage:
        outage.setattr(adopted.service._sender, "send", refuse)
        with pytest.raises(BrokerUnavailable):
            adopted.service.run_once()
    adopted.until_ended(job, "finished")


def test_two_dispatchers_run_each_job_once(adopted: Adopted) -> None:
    other = RqQueues(adopted.inline.settings, adopted.inline.database, ["slow"])
    jobs = [adopted.queue.enqueue(add, number) for number in range(300)]
    with ThreadPoolExecutor(2) as threads:
        other._sender = adopted.inline.broker
        rounds = [threads.submit(service.run_once) for service in (adopted.service, other) * 3]
        assert all(isinstance(each.result(), bool) for each in rounds)
    adopted.until_ended(jobs[-1], "finished")
    adopted.inline.drain()
    assert sorted(runs) == sorted(job.id for job in jobs)
    other.close()


def test_workers_of_rq_may_empty_the_same_queue(adopted: Adopted) -> None:
    jobs = [adopted.queue.enqueue(add, number) for number in range(300)]
    command = [sys.executable, "-m", "rq.cli", "worker", "--burst", "-w", "rq.SimpleWorker", "-u", adopted.url, "slow"]
    worker = subprocess.Popen(command, env={"PYTHONPATH": str(TESTS)}, stderr=subprocess.DEVNULL)
    try:
        until(lambda: any(job.get_status() == "finished" for job in jobs), unless=lambda: worker.poll() is not None)
        adopted.run()
    finally:
        assert worker.wait(WAIT_SECONDS) == 0
    adopted.run()
    assert {adopted.queue.finished_job_registry.count, len(jobs)} == {300}
    assert [job.id for job in jobs if len(job.results()) != 1] == []
    assert 0 < len(runs) < 300


def test_suspension_holds_for_us_too(adopted: Adopted) -> None:
    suspend(adopted.connection)
    job = adopted.queue.enqueue(add, 1)
    adopted.run()
    assert (runs, len(adopted.queue)) == ([], 1)
    resume(adopted.connection)
    adopted.until_ended(job, "finished")


def start_with_a_dead_worker(adopted: Adopted, job: Job) -> None:
    job.set_status(JobStatus.STARTED)
    adopted.connection.zadd(adopted.queue.started_job_registry.key, {f"{job.id}:dead": 1})


def test_job_of_a_dead_worker_of_rq_fails_as_in_rq(adopted: Adopted) -> None:
    job = adopted.queue.enqueue(add, 1)
    adopted.connection.delete(adopted.queue.key)
    start_with_a_dead_worker(adopted, job)
    clean(adopted.queue, adopted.inline.database)
    assert job.get_status() == "failed"


def test_job_that_the_ledger_will_run_again_is_not_abandoned(adopted: Adopted) -> None:
    job = adopted.queue.enqueue(fail, retry=Retry(max=1, interval=600))
    adopted.start()
    adopted.service.run_once()
    until(lambda: [row.state for row in adopted.rows(job)] == ["retrying"])
    start_with_a_dead_worker(adopted, job)
    clean(adopted.queue, adopted.inline.database)
    assert job.get_status() == "started"


@pytest.mark.skipif(not hasattr(rq, "RateLimit"), reason="RQ 2 has no rate limits")
def test_retry_of_a_job_with_a_rate_limit_gets_its_slot_from_rq(adopted: Adopted) -> None:
    limit = rq.RateLimit("bank", 1)
    job = adopted.queue.enqueue(fail_once, retry=Retry(max=1), rate_limit=limit)
    other = adopted.queue.enqueue(add, 1, rate_limit=limit)
    adopted.until_ended(job, "finished")
    adopted.until_ended(other, "finished")
    assert [row.state for row in adopted.rows(job)] == ["discarded", "succeeded"]
