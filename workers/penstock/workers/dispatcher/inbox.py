"""Records the messages that are sent to the dispatcher: jobs that are not due yet, and what the broker gave up on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from penstock.config.errors import LedgerUnavailable, UndecodableMessage
from penstock.ledger.rows.jobs import Row
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.abandoned import bury_dropped
from penstock.ledger.transitions.bury import bury_message
from penstock.ledger.transitions.due import keep, waiting
from penstock.schemas.wire.codec import check_size
from penstock.workers.brokers import Consumer, Delivery
from penstock.workers.dispatcher.poller import Poller

BATCH = 500
_WAIT_SECONDS = 0.5
_DROPPED = "the broker gave up on it: delivered too often without being acknowledged"


class Inbox(Poller):
    """Records messages, then acknowledges them.

    After a crash in between they come again, and the ledger keeps the first copy.
    """

    name = "inbox"
    interval_seconds = 0.0  # the fetch waits

    def __init__(self, database: Database, consumer: Consumer, lease: timedelta) -> None:
        super().__init__()
        self._database, self._consumer, self._lease = database, consumer, lease
        self._is_open = False
        self._pending: list[Delivery] = []
        """Messages that were fetched, but neither recorded nor released, because the ledger is unavailable."""

    def run_once(self) -> bool:
        if not self._is_open:
            self._consumer.open()
            self._is_open = True
        if not self._pending:
            self._pending = self._fetch(lambda: self._consumer.fetch(BATCH, _WAIT_SECONDS))
        if self._pending:
            self._settle(self._pending)
        if dropped := self._fetch(lambda: self._consumer.drain_dead(BATCH)):
            self._bury(dropped)
        return True

    def _fetch(self, fetch: Callable[[], list[Delivery]]) -> list[Delivery]:
        try:
            return fetch()
        except Exception:
            self._is_open = False
            raise

    def wake(self) -> None:
        self._consumer.wake()

    def close(self) -> None:
        self._consumer.close()

    def _settle(self, deliveries: Sequence[Delivery]) -> None:
        try:
            self._record(deliveries)
        except LedgerUnavailable:
            # The messages stay here until the ledger is back. Released, they would come again at once, and RabbitMQ
            # drops a message after twenty deliveries.
            raise
        except Exception:
            if len(deliveries) == 1:
                self._forget(deliveries)
                self._consumer.release(deliveries)
                raise
            # The database refuses one of them. It must not stop the others, so it is isolated by halving.
            middle = len(deliveries) // 2
            try:
                self._settle(deliveries[:middle])
            finally:
                self._settle(deliveries[middle:])
        else:
            self._forget(deliveries)
            self._consumer.ack(deliveries)

    def _forget(self, deliveries: Sequence[Delivery]) -> None:
        settled = set(map(id, deliveries))
        self._pending = [delivery for delivery in self._pending if id(delivery) not in settled]

    def _record(self, deliveries: Sequence[Delivery]) -> None:
        rows: list[Row] = []
        undecodable: list[tuple[Delivery, UndecodableMessage]] = []
        for delivery in deliveries:
            try:
                rows.append(waiting(delivery.envelope))
            except UndecodableMessage as error:
                undecodable.append((delivery, error))
        keep(self._database, rows)
        for delivery, cause in undecodable:
            dead_letter_id = bury_message(self._database, delivery.envelope, delivery.raw, cause.reason, cause.detail)
            self.report_deaths(self._database, [dead_letter_id])

    def _bury_dropped(self, delivery: Delivery) -> tuple[bool, str | None]:
        """Whether it is settled, and its dead letter; None: it has made none."""
        envelope = delivery.envelope
        try:
            check_size(envelope)
        except UndecodableMessage as error:
            return True, bury_message(self._database, envelope, delivery.raw, error.reason, error.detail)
        dropped = bury_dropped(self._database, envelope, delivery.raw, _DROPPED, lease=self._lease)
        return dropped.settled, dropped.dead_letter

    def _bury(self, dropped: list[Delivery]) -> None:
        for number, delivery in enumerate(dropped):
            try:
                settled, dead_letter_id = self._bury_dropped(delivery)
            except Exception:
                self._consumer.release(dropped[number:])
                raise
            if settled:
                if dead_letter_id is not None:
                    self.report_deaths(self._database, [dead_letter_id])
                self._consumer.ack([delivery])
            else:
                self._consumer.release([delivery])
