"""Takes in what is sent to the dispatcher: jobs that are not due yet, and messages the broker gave up on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penstock.config.errors import LedgerUnavailable, UndecodableMessage
from penstock.ledger.queries import dead_letters
from penstock.ledger.rows.envelopes import Row
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.abandoned import bury_dropped
from penstock.ledger.transitions.due import keep, waiting
from penstock.workers.brokers import Consumer, Delivery
from penstock.workers.dispatcher.poller import Poller, log

BATCH = 500
_WAIT_SECONDS = 0.5
_DROPPED = "the broker gave up on it: delivered too often without being acknowledged"


class Intake(Poller):
    """Record, then acknowledge: a crash between the two brings messages again, and the ledger keeps the first."""

    name = "intake"
    interval_seconds = 0.0  # the fetch waits

    def __init__(self, database: Database, consumer: Consumer) -> None:
        super().__init__()
        self._database, self._consumer = database, consumer
        self._is_open = False
        self._held: list[Delivery] = []
        """Fetched, and neither recorded nor given back: the ledger is away."""

    def work(self) -> bool:
        if not self._is_open:
            self._consumer.open()
            self._is_open = True
        if not self._held:
            self._held = self._ask(lambda: self._consumer.fetch(BATCH, _WAIT_SECONDS))
        if self._held:
            self._take_in(self._held)
        if dropped := self._ask(lambda: self._consumer.drain_dead(BATCH)):
            self._bury(dropped)
        return True

    def _ask(self, fetch: Callable[[], list[Delivery]]) -> list[Delivery]:
        try:
            return fetch()
        except Exception:
            self._is_open = False
            raise

    def wake(self) -> None:
        self._consumer.wake()

    def close(self) -> None:
        self._consumer.close()

    def _take_in(self, deliveries: Sequence[Delivery]) -> None:
        try:
            self._record(deliveries)
        except LedgerUnavailable:
            # They stay here until it is back. Given back, they would come again at once, and RabbitMQ gives up on what
            # it has delivered twenty times.
            raise
        except Exception:
            if len(deliveries) == 1:
                self._let_go(deliveries)
                self._consumer.release(deliveries)
                raise
            # One of them is more than the database takes. It must not stop the others, so it is closed in on.
            middle = len(deliveries) // 2
            try:
                self._take_in(deliveries[:middle])
            finally:
                self._take_in(deliveries[middle:])
        else:
            self._let_go(deliveries)
            self._consumer.ack(deliveries)

    def _let_go(self, deliveries: Sequence[Delivery]) -> None:
        settled = set(map(id, deliveries))
        self._held = [one for one in self._held if id(one) not in settled]

    def _record(self, deliveries: Sequence[Delivery]) -> None:
        rows: list[Row] = []
        bad: list[tuple[Delivery, UndecodableMessage]] = []
        for delivery in deliveries:
            try:
                rows.append(waiting(delivery.envelope))
            except UndecodableMessage as error:
                bad.append((delivery, error))
        keep(self._database, rows)
        for delivery, why in bad:
            log.error("message %r is a dead letter: %s", delivery.envelope.id, why)
            dead_letters.add(self._database, delivery.envelope, delivery.raw, why.reason, why.detail)

    def _bury(self, dropped: list[Delivery]) -> None:
        for number, delivery in enumerate(dropped):
            try:
                settled = bury_dropped(self._database, delivery.envelope, delivery.raw, _DROPPED)
            except Exception:
                self._consumer.release(dropped[number:])
                raise
            if settled:
                log.error("job %s: %s", delivery.envelope.id, _DROPPED)
                self._consumer.ack([delivery])
            else:
                self._consumer.release([delivery])
