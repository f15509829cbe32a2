"""The dispatcher's service that advances workflows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property

import sqlalchemy as sa

from penstock.config.errors import LedgerUnavailable
from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.workflows.read import any_due, due_workflows
from penstock.producers.senders import scheme
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.producers.storage import Storage, make_storage
from penstock.workers.dispatcher.poller import Poller, log
from penstock.workers.dispatcher.workflows.send_jobs import StepJobs
from penstock.workers.executor.followups.change_publisher import ChangePublisher
from penstock.workers.handlers.django_project import old_connections_closed
from penstock.workers.workflows.advance import advance
from penstock.workers.workflows.definition import definitions

_IDLE_SECONDS = 0.03
_BUSY_SECONDS = 0.01
"""After a round that advanced some: more jobs end soon."""
_POLL_ON_SECONDS = 1.0
"""Where a lookout watches, it goes on by itself for so long after a round that advanced some."""
_AFTER_FAILURE_SECONDS = 30.0


class Workflows(Poller):
    """Advances the workflows whose classes this process knows, in batches. Where it knows none, it only sleeps.

    Arguments:
        pushed: notify those who wait for a workflow of its end, where the broker is Redis.
        step_jobs: sends the steps' jobs; None: all are left to the service of due jobs.
    """

    name, source = "workflows", "workflow"
    interval_seconds = look_seconds = _IDLE_SECONDS

    def __init__(
        self, settings: Settings, database: Database, *, pushed: bool = False, step_jobs: StepJobs | None = None
    ) -> None:
        super().__init__()
        self._settings, self._database, self._step_jobs = settings, database, step_jobs
        self._changes: ChangePublisher | None = None
        if pushed and scheme(settings.broker_url) == "redis":
            connections = RedisConnections(settings.broker_url, timeout_seconds=settings.broker_timeout_seconds)
            self._changes = ChangePublisher(connections, prefix=settings.prefix)
        self._idle_seconds, self._poll_until = _IDLE_SECONDS, 0.0
        self._postponed: dict[str, float] = {}

    @cached_property
    def _storage(self) -> Storage:
        return make_storage(self._settings.storage_url)

    def work(self) -> sa.ColumnElement[bool] | None:
        return any_due() if definitions else None

    def be_watched(self, interval_seconds: float) -> None:
        self.interval_seconds = self._idle_seconds = interval_seconds

    def run_once(self) -> bool:
        if not definitions:
            self.stopping.wait(1.0)
            return False
        now = time.monotonic()
        self._postponed = {id: until for id, until in self._postponed.items() if until > now}
        due, more = due_workflows(self._database)
        ids = [id for id in due if id not in self._postponed]
        if ids:
            with old_connections_closed():  # a step's method may use Django's ORM
                self._advance(ids)
        if ids:
            self._poll_until = now + _POLL_ON_SECONDS
        self.interval_seconds = (
            _BUSY_SECONDS if ids else _IDLE_SECONDS if now < self._poll_until else self._idle_seconds
        )
        return more and bool(ids)

    def _advance(self, ids: Sequence[str]) -> None:
        """Advance a batch. A workflow that cannot be advanced must not hold up the others, whether the database refuses
        it or its class fails."""
        step_jobs = self._step_jobs if self._step_jobs is not None and self._step_jobs.can_send else None
        try:
            advanced = advance(
                self._database,
                ids,
                open_storage=lambda: self._storage,
                max_bytes=self._settings.max_payload_bytes,
                reserve=step_jobs is not None,
            )
        except LedgerUnavailable:
            raise
        except Exception as error:
            if len(ids) > 1:
                for id in ids:
                    self._advance([id])
                return
            self._postponed[ids[0]] = time.monotonic() + _AFTER_FAILURE_SECONDS
            log.error("workflow %s cannot be moved on; trying again later", ids[0], exc_info=error)
            return
        self.report_deaths(self._database, list(advanced.failed))
        if self._changes is not None and advanced.ended:
            self._changes.publish(advanced.ended)
        if step_jobs is not None:
            self.sent += step_jobs.send(advanced.to_send, advanced.until)
        if self._step_jobs is not None and advanced.has_due:
            self._step_jobs.due_wakeup.set()

    def start(self) -> None:
        if self._changes is not None and definitions:
            self._changes.start()
        super().start()

    def close(self) -> None:
        if self._changes is not None:
            self._changes.close()
        if self._step_jobs is not None:
            self._step_jobs.close()
        if "_storage" in self.__dict__:
            self._storage.close()
