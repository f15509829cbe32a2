"""The handler of RQ's jobs. Importing it lets this process read RQ's pickles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

from redis import RedisError
from rq.exceptions import NoSuchJobError
from rq.job import JobStatus

from penstock.config.settings import Settings
from penstock.schemas.wire.codec import encode
from penstock.workers.engines.rq.attempt import AttemptWorker, fetch, forget_earlier_runs
from penstock.workers.engines.rq.connection import RqRedis, connect
from penstock.workers.engines.rq.job import RqJob, job_class
from penstock.workers.executor.attempt.outcome import adopted_result, traceback_of
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import handles
from penstock.workers.handlers.resources import provides
from penstock.workers.handlers.returns import Discard, Permanent, Resend, Snooze, as_final, error_line

_OUTAGE = timedelta(seconds=2)


@provides
def open_connection(settings: Settings) -> Iterator[RqRedis]:
    """RQ's Redis. Raises ConfigError."""
    with connect(settings) as connection:
        yield connection


def run_rq_job(job: RqJob, ctx: Context, connection: RqRedis, settings: Settings) -> Any:
    """Run a job by RQ's worker. Returns the function's result, as JSON.

    Raises:
        Exception: what the function has raised, if RQ has no retry left; Permanent: it returned RQ's Retry too often.
    """
    try:
        rq_job = fetch(job.rq_id, connection)
        if rq_job.get_status(refresh=False) == JobStatus.CANCELED:
            return Discard("it was cancelled through RQ")
        forget_earlier_runs(rq_job)
        worker = AttemptWorker(rq_job, connection, ctx.worker or "")
        worker.run()
    except NoSuchJobError:
        return Discard("RQ has no record of it: its ttl has passed, or it was deleted")
    except RedisError as error:  # of RQ's records: those of the function are in worker.error
        return Snooze(_OUTAGE, reason=f"RQ's Redis: {error_line(error)}")
    if worker.queue.retry_after is not None:
        again = encode(job, id=ctx.job_id, queue=ctx.queue)
        return Resend(again, worker.queue.retry_after, reason=_reason(worker), traceback=_traceback(worker.error))
    if worker.sent_again:
        return Discard(f"RQ sends it again within its rate limit: {_reason(worker)}")
    if worker.error is not None:
        has_retry = rq_job.retries_left is not None
        raise as_final(worker.error, "its Retry is exhausted" if has_retry else "it was enqueued without a Retry")
    if rq_job.get_status(refresh=False) == JobStatus.FAILED:
        raise Permanent("it returned RQ's Retry again, after as many retries as that allows")
    return adopted_result(rq_job.returned, settings.max_result_bytes_inline, "RQ's record has all of it")


def _reason(worker: AttemptWorker) -> str:
    return "it returned RQ's Retry" if worker.error is None else error_line(worker.error)


def _traceback(error: BaseException | None) -> str | None:
    return None if error is None else traceback_of(error)


def handle(queues: Iterable[str]) -> None:
    """Declare the handler of the jobs of RQ's queues. Raises KindError."""
    for queue in queues:
        handles(job_class(queue))(run_rq_job)
