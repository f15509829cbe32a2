"""The dispatcher's services for RQ's queues: jobs that are enqueued, jobs whose time has come, and RQ's records."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from redis import RedisError
from rq import Queue
from rq.job import Job
from rq.scheduler import RQScheduler
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import str_to_date

from penstock.config.errors import BrokerUnavailable, PenstockError
from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.text import storable
from penstock.ledger.transitions.bury import bury_message
from penstock.producers.senders import open_sender_from
from penstock.schemas.wire.codec import Envelope, encode
from penstock.schemas.wire.texts import check_text
from penstock.workers.dispatcher.poller import Poller, log
from penstock.workers.engines.rq.connection import connect
from penstock.workers.engines.rq.job import job_class, job_id
from penstock.workers.engines.rq.registries import clean

BATCH = 200
_FIELDS = ("enqueued_at", "created_at", "description", "enqueue_at_front")
"""Of RQ's record of a job; its pickles are left alone."""
_DESCRIPTION_CHARACTERS = 500
_CALL = re.compile(r"([\w.]+)\(")
_SCHEDULE_SECONDS = 1.0
_ACQUIRE_SECONDS = 5.0
_CLEAN_SECONDS = 600.0
_FAILED_SECONDS = 60.0
_LOCK_SECONDS = 10
"""Seconds that a dispatcher keeps RQ's lock of a scheduler: the delay of scheduled jobs after its death."""

# From RQ's queue, KEYS[1], ids go to a list of ours, so that RQ's workers may empty the same queue. All of it is one
# step: between two, another dispatcher could move a job that then runs and is sent again, at another time.
_READ = """
for _ = redis.call('LLEN', KEYS[2]) + 1, tonumber(ARGV[1]) do
  local id = redis.call('LPOP', KEYS[1])
  if not id then break end
  redis.call('RPUSH', KEYS[2], id)
end
local jobs = {}
for i, id in ipairs(redis.call('LRANGE', KEYS[2], 0, ARGV[1] - 1)) do
  jobs[i] = {id, redis.call('HMGET', ARGV[2] .. id, unpack(ARGV, 3))}
end
return jobs
"""
# Of the id that was sent on, and not of one that was pushed since: that has another time.
_REMOVE = """
if (redis.call('HGET', KEYS[2], 'enqueued_at') or '') ~= ARGV[2] then return 0 end
return redis.call('LREM', KEYS[1], 1, ARGV[1])
"""


class RqQueues(Poller):
    """Moves the jobs of RQ's queues into ours of the same names, and does what RQ's workers do between jobs.

    A crash loses none: an id that was not sent on is still in a list, and sent twice it is the same job.
    """

    name, source, essential = "RQ's queues", "stock", False

    def __init__(self, settings: Settings, database: Database, queues: Sequence[str]) -> None:
        super().__init__()
        self._connection = connect(settings, timeout_seconds=settings.broker_timeout_seconds)
        self._sender = open_sender_from(settings)
        self._database = database
        self._queues = [Queue(name, connection=self._connection) for name in queues]
        # RQ's locks last for its interval and a minute.
        self._scheduler = RQScheduler(
            queues, self._connection, interval=_LOCK_SECONDS - 60, logging_level=logging.WARNING
        )
        self._schedule_at = self._acquire_at = self._clean_at = 0.0

    def run_once(self) -> bool:
        with _errors_named():
            self._keep_up()
            if self._connection.exists(WORKERS_SUSPENDED):
                return False
            return self._take() >= BATCH

    def close(self) -> None:
        self._sender.close()
        with _errors_named():
            if self._scheduler.acquired_locks:
                self._scheduler.stop()
            self._connection.close()

    def _take(self) -> int:
        """Move up to `BATCH` jobs of each queue. Returns the most that one had."""
        with self._connection.pipeline(transaction=False) as pipeline:
            for queue in self._queues:
                pipeline.eval(_READ, 2, queue.key, _moving(queue), BATCH, Job.redis_job_namespace_prefix, *_FIELDS)
            answers = pipeline.execute()
        jobs = [
            (queue, rq_id, [field or b"" for field in fields])
            for queue, answer in zip(self._queues, answers, strict=True)
            for rq_id, fields in answer
        ]
        if not jobs:
            return 0
        # Without a record its ttl has passed, or it was deleted.
        read = [self._read(queue.name, rq_id, fields) for queue, rq_id, fields in jobs if any(fields)]
        envelopes = [envelope for envelope in read if envelope is not None]
        self._sender.send(envelopes)
        prefix = Job.redis_job_namespace_prefix.encode()
        with self._connection.pipeline(transaction=False) as pipeline:
            for queue, rq_id, fields in jobs:
                pipeline.eval(_REMOVE, 2, _moving(queue), prefix + rq_id, rq_id, fields[0])
            pipeline.execute()
        self.sent += len(envelopes)
        return max(map(len, answers))

    def _read(self, queue: str, rq_id: bytes, fields: Sequence[bytes]) -> Envelope | None:
        """The envelope of a job of RQ's; None: its record cannot be read, and it is a dead letter."""
        try:
            return _envelope(queue, rq_id.decode(), *(field.decode(errors="replace") for field in fields))
        except ValueError as error:
            record = json.dumps([rq_id.decode(errors="replace"), *(field.decode(errors="replace") for field in fields)])
            unread = Envelope(queue, "normal", {}, record.encode())
            detail = f"RQ's record of a job: {error}"
            self.report_deaths(
                self._database, [bury_message(self._database, unread, unread.body, "undecodable", detail)]
            )
            return None

    def _keep_up(self) -> None:
        """Do what RQ's workers do between jobs. What RQ cannot read must not keep jobs from running."""
        try:
            self._schedule()
            self._clean()
        except (RedisError, PenstockError):
            raise
        except Exception:
            log.exception("RQ's scheduler or its registries failed; trying again in a minute")
            self._schedule_at = self._clean_at = time.monotonic() + _FAILED_SECONDS

    def _schedule(self) -> None:
        """Let RQ's scheduler enqueue what is due, unless another one has its lock."""
        now = time.monotonic()
        if now < self._schedule_at:
            return
        self._schedule_at = now + _SCHEDULE_SECONDS
        self._scheduler.heartbeat()
        if len(self._scheduler.acquired_locks) < len(self._queues) and now >= self._acquire_at:
            self._acquire_at = now + _ACQUIRE_SECONDS
            self._scheduler.acquire_locks()
            if hasattr(self._scheduler, "register_birth"):  # RQ 3 lists its schedulers
                self._scheduler.register_birth()
        self._scheduler.enqueue_scheduled_jobs()

    def _clean(self) -> None:
        """Delete what has expired from RQ's registries, as its workers do every ten minutes."""
        now = time.monotonic()
        if now < self._clean_at:
            return
        self._clean_at = now + _CLEAN_SECONDS
        for queue in self._queues:
            if queue.acquire_maintenance_lock():
                clean(queue, self._database)
                queue.release_maintenance_lock()


def _moving(queue: Queue) -> str:
    """The key of the ids that dispatchers are about to send on."""
    return f"{queue.key}:penstock"


def _envelope(
    queue: str, rq_id: str, enqueued_at: str, created_at: str, description: str, enqueue_at_front: str
) -> Envelope:
    check_text("key", rq_id)
    sent_at = str_to_date(enqueued_at or created_at)
    call = _CALL.match(description)
    job = job_class(queue)(
        rq_id=rq_id,
        description=storable(description, _DESCRIPTION_CHARACTERS),
        function=call[1] if call else None,
    )
    return encode(
        job,
        id=job_id(rq_id, sent_at),
        key=rq_id,
        sent_at=sent_at,
        priority="high" if enqueue_at_front == "1" else None,
    )


@contextmanager
def _errors_named() -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        raise BrokerUnavailable(f"RQ's Redis: {error or type(error).__name__}") from error
