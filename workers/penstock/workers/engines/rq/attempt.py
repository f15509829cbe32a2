"""An attempt of a job by RQ's own worker: its status, result, callbacks and dependents are RQ's."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Queue, SimpleWorker
from rq.job import Job, JobStatus
from rq.serializers import DefaultSerializer, JSONSerializer
from rq.timeouts import BaseDeathPenalty, JobTimeoutException, TimerDeathPenalty, UnixSignalDeathPenalty

from penstock.workers.executor.attempt.errors import Terminated

WORKER_PREFIX = "penstock:"
"""The beginning of the names that RQ's records have for our workers."""
_WITHOUT_TIMEOUT_SECONDS = 7 * 86400


class AttemptJob(Job):
    """A job that keeps what its function has returned."""

    returned: Any = None

    def perform(self) -> Any:
        self.returned = super().perform()
        return self.returned


class AttemptQueue(Queue):
    """The queue of a job that runs. A retry of the job goes to the ledger, which keeps it until it is due.

    Attributes:
        retry_after: the wait before the retry; None: RQ has asked for none.
    """

    retry_after: timedelta | None = None
    _job_id: str | None = None

    @contextmanager
    def keep_retry_of(self, job_id: str) -> Iterator[None]:
        """While the block runs, sending this job again sets `retry_after`. RQ saves its status as always."""
        self._job_id = job_id
        try:
            yield
        finally:
            self._job_id = None

    def push_job_id(self, job_id: str, pipeline: Pipeline | None = None, at_front: bool = False) -> None:
        if job_id == self._job_id:
            self.retry_after = timedelta(0)
        else:
            super().push_job_id(job_id, pipeline=pipeline, at_front=at_front)

    def schedule_job(
        self, job: Job, datetime: datetime, pipeline: Pipeline | None = None, *arguments: Any, **options: Any
    ) -> Job:
        scheduled = super().schedule_job(job, datetime, pipeline, *arguments, **options)
        if job.id == self._job_id:
            self.scheduled_job_registry.remove(job, pipeline=pipeline)
            self.retry_after = max(datetime - _now(), timedelta(0))
        return scheduled


class ThreadTimeout(TimerDeathPenalty):
    """RQ's limit for code in a thread. Its error gets a class of its own each time, since RQ puts the text of each
    limit into the class, and several threads have several limits."""

    def __init__(self, timeout: float, exception: type[Exception] = JobTimeoutException, **options: Any) -> None:
        super().__init__(timeout, type(exception.__name__, (exception,), {}), **options)


class AttemptWorker(SimpleWorker):
    """RQ's worker for one attempt in this thread.

    Attributes:
        job: of the attempt.
        error: what the function, or a callback in its place, has raised.
        queue: knows of the retry, if RQ wants one.
        sent_again: whether RQ itself has sent the job again, which has a rate limit.
    """

    log_result_lifespan = False
    job_class = AttemptJob

    def __init__(self, job: AttemptJob, connection: Redis, name: str) -> None:
        self.job = job
        self.error: BaseException | None = None
        self.sent_again = False
        self.queue = AttemptQueue(job.origin, connection=connection, job_class=type(job), serializer=job.serializer)
        super().__init__(
            [self.queue],
            name=WORKER_PREFIX + name,
            connection=connection,
            job_class=type(job),
            serializer=job.serializer,
            prepare_for_work=False,
            log_job_description=False,
        )
        self.death_penalty_class = death_penalty()

    def run(self) -> None:
        """Run the attempt to its end. Raises RedisError: of RQ's records."""
        self.execute_job(self.job, self.queue)

    def get_heartbeat_ttl(self, job: Job, *working_time: float) -> int:
        """Seconds after which RQ takes the job for abandoned. No heartbeats follow, so it covers the whole attempt."""
        return _WITHOUT_TIMEOUT_SECONDS if job.timeout == -1 else super().get_heartbeat_ttl(job)

    def set_state(self, state: str, pipeline: Pipeline | None = None) -> None:
        """RQ's list of workers does not have this one, whose record ends with the attempt."""

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        self.error = exc_info[1]

    def handle_job_failure(self, job: Job, *arguments: Any, **options: Any) -> None:
        if isinstance(self.error, Terminated):
            self._stopped_job_id = job.id  # so it is not tried again by RQ, and its record does not say that it failed
        with self._retries_kept(job):
            super().handle_job_failure(job, *arguments, **options)

    def handle_job_retry(self, job: Job, *arguments: Any, **options: Any) -> None:
        with self._retries_kept(job):
            super().handle_job_retry(job, *arguments, **options)

    @contextmanager
    def _retries_kept(self, job: Job) -> Iterator[None]:
        if getattr(job, "has_rate_limit", False):  # of RQ 3, whose slots are RQ's to give
            yield
            self.sent_again = job.get_status(refresh=False) != JobStatus.FAILED
        else:
            with self.queue.keep_retry_of(job.id):
                yield


def fetch(rq_id: str, connection: Redis) -> AttemptJob:
    """The job of RQ's record, with the serializer that has written it: pickle, or JSON. Raises NoSuchJobError."""
    job = AttemptJob.fetch(rq_id, connection=connection, serializer=DefaultSerializer)
    if job.data[:1] == b"[":
        job = AttemptJob.fetch(rq_id, connection=connection, serializer=JSONSerializer)
    assert isinstance(job, AttemptJob)
    return job


def forget_earlier_runs(job: AttemptJob) -> None:
    """Take a job out of RQ's registries that an earlier attempt has put it into: that one crashed, or was final."""
    if job.get_status(refresh=False) in (JobStatus.QUEUED, JobStatus.SCHEDULED):
        return
    executions = job.execution_registry
    with job.connection.pipeline() as pipeline:
        for execution_id in executions.get_execution_ids():
            pipeline.zrem(job.started_job_registry.key, f"{job.id}:{execution_id}")
        pipeline.delete(executions.key)
        job.failed_job_registry.remove(job, pipeline=pipeline)
        job.finished_job_registry.remove(job, pipeline=pipeline)
        pipeline.execute()


def death_penalty() -> type[BaseDeathPenalty]:
    """How a time limit ends code of this thread: by a signal in the main one, else by an error between two steps."""
    in_main = threading.current_thread() is threading.main_thread()
    return UnixSignalDeathPenalty if in_main and hasattr(signal, "SIGALRM") else ThreadTimeout


def _now() -> datetime:
    return datetime.now(UTC)
