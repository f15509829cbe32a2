"""The dispatcher's service that moves workflows on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property

from penstock.config.errors import LedgerUnavailable
from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.producers.senders import scheme
from penstock.producers.storage import Storage, make_storage
from penstock.workers.dispatcher.poller import Poller, log
from penstock.workers.dispatcher.workflows.send_jobs import Sending
from penstock.workers.executor.followups.change_publisher import ChangePublisher
from penstock.workers.workflows.advance import Mover
from penstock.workers.workflows.definition import definitions

_IDLE_SECONDS = 0.03
_BUSY_SECONDS = 0.01
"""After a round that moved some: the next ends are near."""
_AFTER_FAILURE_SECONDS = 30.0


class Workflows(Poller):
    """Moves the workflows that this process knows the classes of, in batches. Where it knows none, it only sleeps.

    Arguments:
        pushed: tell those who wait for a workflow of its end, where the broker is Redis.
        sending: of the steps' jobs; None: all are left to the service of due jobs.
    """

    name = "workflows"
    interval_seconds = _IDLE_SECONDS

    def __init__(
        self, settings: Settings, database: Database, *, pushed: bool = False, sending: Sending | None = None
    ) -> None:
        super().__init__()
        self._settings, self._sending = settings, sending
        self._changes: ChangePublisher | None = None
        if pushed and scheme(settings.broker_url) == "redis":
            timeout = settings.broker_timeout_seconds
            self._changes = ChangePublisher(settings.broker_url, prefix=settings.prefix, timeout_seconds=timeout)
        self._mover = Mover(database, lambda: self._storage, settings.max_payload_bytes)
        self._put_off: dict[str, float] = {}

    @cached_property
    def _storage(self) -> Storage:
        return make_storage(self._settings.storage_url)

    def work(self) -> bool:
        if not definitions:
            self.stopping.wait(1.0)
            return False
        now = time.monotonic()
        self._put_off = {id: until for id, until in self._put_off.items() if until > now}
        due, more = self._mover.due()
        ids = [id for id in due if id not in self._put_off]
        if ids:
            self._advance(ids)
        self.interval_seconds = _BUSY_SECONDS if ids else _IDLE_SECONDS
        return more and bool(ids)

    def _advance(self, ids: Sequence[str]) -> None:
        """One that cannot be moved, whatever it is of it that the database or a class does not take, must not keep the
        others."""
        sending = self._sending if self._sending is not None and self._sending.is_possible else None
        try:
            moved = self._mover.advance(ids, reserve=sending is not None)
        except LedgerUnavailable:
            raise
        except Exception as error:
            if len(ids) > 1:
                for id in ids:
                    self._advance([id])
                return
            self._put_off[ids[0]] = time.monotonic() + _AFTER_FAILURE_SECONDS
            log.error("workflow %s cannot be moved on; trying again later", ids[0], exc_info=error)
            return
        if self._changes is not None and moved.ended:
            self._changes.publish(moved.ended)
        if sending is not None:
            sending.send(moved.sending, moved.until)
        if self._sending is not None and moved.due:
            self._sending.news.set()

    def start(self) -> None:
        if self._changes is not None and definitions:
            self._changes.start()
        super().start()

    def close(self) -> None:
        if self._changes is not None:
            self._changes.close()
        if self._sending is not None:
            self._sending.close()
        if "_storage" in self.__dict__:
            self._storage.close()
