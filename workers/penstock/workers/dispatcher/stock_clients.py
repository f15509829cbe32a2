"""Routes the messages of unmodified Celery and Dramatiq clients to the queues of our workers."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from penstock.config.errors import InvalidJob, UndecodableMessage
from penstock.config.settings import Settings
from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions.bury import bury_message
from penstock.ledger.transitions.due import keep, waiting
from penstock.producers.senders import scheme
from penstock.producers.traces.sending import relayed
from penstock.schemas.jobs.adopted import AdoptedJob
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, registry
from penstock.schemas.wire.codec import Envelope, check_size, decode, encode, is_due, parse_time
from penstock.workers.brokers.stock.intake import StockIntake, open_stock_intake
from penstock.workers.brokers.stock.messages import DRAMATIQ, pass_on_options
from penstock.workers.dispatcher.poller import Poller

BATCH = 500
_REFRESH_SECONDS = 2.0
_BUSY_PAUSE, _IDLE_PAUSE = 0.2, 2.0
_BUSY_SECONDS = 60.0
"""How long after the last message RabbitMQ is asked as often as Redis. It drops a message that expires in its queue,
and Celery's worker, which would have read it at once, would mark the task as revoked."""


class StockClients(Poller):
    """Empties the queues of unmodified clients: those in `stock_queues`, and those named like queues of ours."""

    name, source = "stock clients", "stock"

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__()
        self.interval_seconds = _BUSY_PAUSE
        # Asking RabbitMQ for a missing queue costs a channel and a line in its log.
        self._idle_pause = _BUSY_PAUSE if scheme(settings.broker_url) == "redis" else _IDLE_PAUSE
        self._busy_until = 0.0
        self._settings, self._database = settings, database
        self._workers_kinds: dict[str, str] = {}
        self._own: set[str] = set()
        self._intake: StockIntake | None = None
        self._opened: set[str] = set()
        self._refresh_at = 0.0

    def run_once(self) -> bool:
        if time.monotonic() >= self._refresh_at:
            self._refresh_queues()
        assert self._intake is not None
        count = self._intake.take(BATCH, self.route)
        self.sent += count
        now = time.monotonic()
        if count:
            self._busy_until = now + _BUSY_SECONDS
        self.interval_seconds = _BUSY_PAUSE if now < self._busy_until else self._idle_pause
        return count >= BATCH

    def close(self) -> None:
        if self._intake is not None:
            self._intake.close()

    def route(self, envelope: Envelope, raw: bytes) -> Envelope | None:
        """Envelope → envelope for the queue of its kind; None: it waits in the ledger, or is a dead letter there."""
        at = time.time_ns()
        try:
            routed = self._route(envelope)
        except UndecodableMessage as error:
            dead_letter_id = bury_message(self._database, envelope, raw, error.reason, error.detail)
            self.report_deaths(self._database, [dead_letter_id])
            return None
        if routed is not None:
            relayed((routed,), at, "stock")
        return routed

    def _route(self, envelope: Envelope) -> Envelope | None:
        check_size(envelope)
        if not envelope.headers:
            raise UndecodableMessage("undecodable", "neither Celery's protocol 2 nor a Dramatiq message, in JSON")
        routed = Envelope(self._queue_of(envelope), envelope.priority, envelope.headers, envelope.body)
        kind = registry.find(envelope.kind)
        is_actor = kind is not None and DRAMATIQ in routed.headers and issubclass(kind.job, AdoptedJob)
        pass_on_options(routed, needed=kind is None or is_actor)
        if kind is None:
            return routed  # a worker that knows the kind reads the rest, its time included
        if is_actor:
            routed.headers.pop("expires", None)  # AgeLimit decides
            routed.priority = kind.priority if routed.priority == "normal" else routed.priority
        elif issubclass(kind.job, AdoptedJob):
            routed = _sent_now(routed)
        try:
            due_at = parse_time(envelope.headers.get("eta"))
        except (ValueError, OverflowError) as error:
            raise UndecodableMessage("undecodable", f"header 'eta': {error}") from error
        if is_due(due_at, datetime.now(UTC)):
            return routed
        keep(self._database, [waiting(routed)])
        return None

    def _queue_of(self, envelope: Envelope) -> str:
        if (kind := registry.find(envelope.kind)) is not None:
            # A task runs where it was sent to, as in Celery. Other queues of clients are only emptied.
            own = issubclass(kind.job, AdoptedJob) and envelope.queue in self._own
            return envelope.queue if own else kind.queue
        if envelope.kind in self._workers_kinds:
            return self._workers_kinds[envelope.kind]
        if envelope.queue in self._own:
            return envelope.queue
        raise UndecodableMessage("unknown_kind", f"no worker and no module imported here knows kind {envelope.kind!r}")

    def _refresh_queues(self) -> None:
        """Find out which queues there are: workers of other programs come and go."""
        self._workers_kinds = heartbeats.known_kinds(self._database)
        self._own = registry.queues() | set(self._settings.queues) | set(self._workers_kinds.values())
        self._own.discard(DISPATCHER_QUEUE)
        queues = self._own | set(self._settings.stock_queues)
        if queues != self._opened or self._intake is None:
            self.close()
            url, prefix = self._settings.broker_url, self._settings.prefix
            timeout = self._settings.broker_timeout_seconds
            self._intake = open_stock_intake(
                url,
                sorted(queues),
                prefix,
                timeout_seconds=timeout,
                max_message_bytes=self._settings.message_limit,
            )
            self._opened = queues
        self._refresh_at = time.monotonic() + _REFRESH_SECONDS


def _sent_now(envelope: Envelope) -> Envelope:
    """The message of an adopted task in our form, which says when it was sent: Celery's own does not."""
    message = decode(envelope)
    try:
        ours = encode(
            message.job,
            id=message.id,
            queue=envelope.queue,
            priority=envelope.priority,
            expires_at=message.expires_at,
            traceparent=message.traceparent,
        )
    except InvalidJob as error:
        raise UndecodableMessage("invalid_payload", str(error)) from error
    if message.due_at is not None:
        ours.headers["eta"] = message.due_at.isoformat()
    return ours
