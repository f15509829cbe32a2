"""Celery: an application whose tasks Penstock's workers run sends them straight to Penstock's queues.

    adopt(app)
    adopt(app, outbox=session)  # a scoped_session: what `.delay()` sends leaves only if its transaction commits

Without it everything works, too: a dispatcher moves what the application sends to its own queues. With it each message
goes one way less, and no message waits in a queue of Celery's.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from penstock.config.errors import BrokerUnavailable, PayloadTooLarge, QueueFull
from penstock.config.settings import load_settings
from penstock.producers.contrib.outboxes import writer_to
from penstock.producers.senders import open_sender_from, scheme
from penstock.producers.traces import current_traceparent
from penstock.schemas.jobs.kind import Priority
from penstock.schemas.wire.celery_tasks import task_fields
from penstock.schemas.wire.codec import Envelope, body_of, is_due, parse_time, seal

if TYPE_CHECKING:
    from penstock.config.settings import Settings

__all__ = ["adopt"]

Send = Callable[[Envelope, datetime | None], None]
"""Takes an envelope, and when it is due if that is later."""

_DELAYED_EXCHANGE, _DELAYED_PARTS = "celery_delayed_", 28
"""Celery's exchanges for delays of quorum queues, and the parts of a routing key before the queue's own."""


def adopt(
    app: Any,
    *,
    settings: Settings | None = None,
    outbox: Any = None,
    send: Callable[[Envelope], None] | None = None,
) -> None:
    """Let an application send the tasks that it has registered straight to Penstock's queues.

    Other messages go where they went. A second call changes nothing.

    Arguments:
        app: the `celery.Celery`.
        settings: None: as `penstock.toml` and the environment say.
        outbox: writes each message into the transaction in use, to be sent once that is committed. A function that
            returns SQLAlchemy's Session, AsyncSession or Connection in use, such as a scoped_session, or None where
            the message is to be sent at once; or `penstock.producers.contrib.django.Outbox()`.
        send: takes each envelope in place of the broker.

    Raises:
        ConfigError: a setting is wrong, or `outbox` is nothing that a message can be written to.
    """
    settings = settings or load_settings()
    write = None if outbox is None else writer_to(outbox)
    if hasattr(app.amqp.send_task_message, "original"):
        return
    if send is None:
        sender = open_sender_from(settings)
        weakref.finalize(app, sender.close)

        def send(envelope: Envelope) -> None:
            sender.send([envelope])

    to_broker = send

    def send_when_due(envelope: Envelope, due_at: datetime | None) -> None:
        envelope = delayed(envelope, due_at)
        if write is None or not write(envelope):
            to_broker(envelope)

    redirect(app, settings, send_when_due)


def delayed(envelope: Envelope, due_at: datetime | None) -> Envelope:
    """The envelope for the dispatcher, which sends the job when it is due; None: as it is, to be sent at once."""
    if due_at is None:
        return envelope
    ours = envelope.headers["penstock"]
    return seal(
        envelope.kind,
        ours["version"],
        envelope.body,
        envelope.id,
        envelope.queue,
        envelope.priority,
        sent_at=parse_time(ours["sent_at"]),
        due_at=due_at,
        expires_at=parse_time(ours.get("expires_at")),
        traceparent=ours.get("traceparent"),
    )


def redirect(app: Any, settings: Settings, send: Send) -> None:
    """Put `send` in the place of the application's producer, for messages of tasks that it has registered.

    It takes the place of an earlier one, too: a worker sends what its tasks send in its own way.
    """
    current, tasks = app.amqp.send_task_message, app.tasks
    original = getattr(current, "original", current)

    def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
        if name in tasks:
            producer = _Redirected(producer, settings, send)
        return original(producer, name, message, **options)

    send_task_message.original = original  # type: ignore[attr-defined]
    app.amqp.send_task_message = send_task_message


class _Redirected:
    """A producer of kombu's that gives the messages of tasks to Penstock. The rest, such as events, goes its way."""

    def __init__(self, producer: Any, settings: Settings, send: Send) -> None:
        self._producer, self._settings, self._send = producer, settings, send

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(self, body: Any, routing_key: str = "", exchange: Any = "", **options: Any) -> Any:
        from kombu.exceptions import OperationalError

        headers: dict[str, Any] = options.get("headers") or {}
        name = getattr(exchange, "name", exchange) or ""
        queue = _queue(name, routing_key, options.get("declare"))
        if "task" not in headers or queue is None:
            return self._producer.publish(body, routing_key=routing_key, exchange=exchange, **options)
        envelope = task_envelope(body, headers, options, queue, name, self._settings)
        due_at = parse_time(headers.get("eta"))
        try:
            self._send(envelope, None if is_due(due_at, datetime.now(UTC)) else due_at)
        except (BrokerUnavailable, QueueFull) as error:  # as the application expects it
            raise OperationalError(str(error)) from error
        return None


def _queue(exchange: str, routing_key: str, declare: Any) -> str | None:
    """The queue of a message; None: only the broker knows it, by a binding."""
    if not exchange:
        return routing_key
    if exchange.startswith(_DELAYED_EXCHANGE):
        return ".".join(routing_key.split(".")[_DELAYED_PARTS:])
    names = [queue.name for queue in declare or () if hasattr(queue, "name")]
    return names[0] if len(names) == 1 else None


def task_envelope(
    body: Any, headers: Mapping[str, Any], options: Mapping[str, Any], queue: str, exchange: str, settings: Settings
) -> Envelope:
    """A message of Celery's as ours.

    Arguments:
        body: arguments, keyword arguments and embed, as Python has them.
        options: those of a producer's `publish`: the properties, and `serializer`.

    Raises:
        PayloadTooLarge: no worker would read it, as it is over `max_message_bytes`; and what kombu raises where it
            cannot serialize the body.
    """
    from kombu.serialization import dumps

    content_type, content_encoding, data = dumps(body, options.get("serializer"))  # type: ignore[no-untyped-call]
    data = data.encode() if isinstance(data, str) else data
    properties = {
        **options,
        "content_type": content_type,
        "content_encoding": content_encoding,
        "delivery_info": {"exchange": exchange, "routing_key": queue},
    }
    payload = body_of(to_json(task_fields(headers, properties, data), inf_nan_mode="constants"))
    if len(payload) > settings.message_limit:
        raise PayloadTooLarge(str(headers["task"]), len(payload), settings.message_limit)
    return seal(
        str(headers["task"]),
        1,
        payload,
        str(headers["id"]),
        queue,
        lane(options.get("priority"), settings),
        expires_at=parse_time(headers.get("expires")),
        traceparent=current_traceparent(),
    )


def lane(priority: Any, settings: Settings) -> Priority:
    """The lane of a priority of Celery's. The default, 0, is the most urgent on Redis and the least on RabbitMQ."""
    if not priority:
        return "normal"
    return "high" if scheme(settings.broker_url) == "rabbitmq" else "low"
