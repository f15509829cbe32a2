"""A Dramatiq broker whose actors are our kinds and whose queues are ours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import dramatiq
import dramatiq.broker
from dramatiq.errors import ActorNotFound

from penstock.config.errors import ConfigError
from penstock.config.settings import Settings
from penstock.producers.senders import Sender, open_sender_from
from penstock.schemas.jobs.kind import PRIORITIES, registry
from penstock.schemas.wire.codec import encode
from penstock.workers.handlers.registry import Handlers
from penstock.workers.handlers.registry import handlers as default_handlers


class PenstockBroker(dramatiq.Broker):
    """A Dramatiq broker that declares an actor for each handled kind and enqueues through Penstock's sender.

    It starts without middleware: retries, time and age limits are declared by a kind and kept by the executor.
    """

    def __init__(self) -> None:
        super().__init__(middleware=[])
        self._settings: Settings | None = None
        self._sender: Sender | None = None

    def connect(self, settings: Settings) -> None:
        """Set the broker to send to. The connection is made with the first message."""
        self._settings = settings
        self._sender = open_sender_from(settings)

    def declare_kinds(self, handlers: Handlers = default_handlers) -> None:
        """Declare an actor for each kind that has a handler."""
        for handler in handlers:
            kind = handler.kind
            if kind.name not in self.actors:
                dramatiq.Actor(
                    handler.function,
                    broker=self,
                    actor_name=kind.name,
                    queue_name=kind.queue,
                    priority=PRIORITIES.index(kind.priority),
                    options={},
                )

    def declare_queue(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = None
            self.emit_after("declare_queue", queue_name)

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> dramatiq.Message[Any]:
        """Send a message as a job of the kind that its actor is called. The message's id becomes the job's.

        Arguments:
            delay: in milliseconds.

        Raises:
            ActorNotFound: no kind has this name; pydantic.ValidationError, PayloadTooLarge: the job cannot be sent;
            BrokerUnavailable, QueueFull: see `Sender.send`.
        """
        kind = registry.find(message.actor_name)
        if kind is None:
            raise ActorNotFound(message.actor_name)  # type: ignore[no-untyped-call]
        if self._sender is None or self._settings is None:
            raise ConfigError("the broker is not connected; call connect(settings) first")
        fields = {**dict(zip(kind.job.model_fields, message.args, strict=False)), **message.kwargs}
        envelope = encode(
            kind.job.model_validate(fields),
            id=message.message_id,
            queue=message.queue_name if message.queue_name in self.queues else None,
            due_at=None if delay is None else datetime.now(UTC) + timedelta(milliseconds=delay),
            max_bytes=self._settings.max_payload_bytes,
        )
        self.emit_before("enqueue", message, delay)
        self._sender.send([envelope])
        self.emit_after("enqueue", message, delay)
        return message

    def close(self) -> None:
        if self._sender is not None:
            self._sender.close()


def get_broker() -> PenstockBroker:
    """See `penstock.workers.engines.dramatiq.get_broker`."""
    current = dramatiq.broker.global_broker
    if isinstance(current, PenstockBroker):
        return current
    broker = PenstockBroker()
    dramatiq.set_broker(broker)
    return broker
