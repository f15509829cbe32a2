"""Dramatiq: the messages of an application's actors go straight to the queues of Penstock's workers.

    from penstock.producers.contrib.dramatiq import adopt
    adopt(broker)
    adopt(broker, outbox=session)  # a scoped_session: what `send()` sends leaves only if its transaction commits

Actors, `send`, `send_with_options`, pipelines and groups stay as they are. The workers run the actors with
`penstock worker --dramatiq shop.actors`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from penstock.config.errors import ConfigError, InvalidJob, PayloadTooLarge
from penstock.config.settings import Settings, load_settings
from penstock.producers.contrib.outboxes import WriteEnvelope, writer_to
from penstock.producers.senders import open_sender_from
from penstock.producers.traces import current_traceparent
from penstock.producers.traces.sending import sending
from penstock.schemas.jobs.kind import Priority
from penstock.schemas.wire.codec import Envelope, body_of, is_id, seal

__all__ = ["DirectSending", "adopt", "lane"]

_DELAYED = ".DQ"
"""The suffix of Dramatiq's queues of delayed messages."""


def adopt(broker: Any, settings: Settings | None = None, *, outbox: Any = None) -> None:
    """Let a broker send the messages of its actors to Penstock's queues from now on. It connects with the first one.

    The middleware's hooks `before_enqueue` and `after_enqueue` run as before. A message with a delay waits in the
    ledger. A message for an actor that is not declared on the broker goes where it went.

    Arguments:
        broker: the application's, such as `dramatiq.get_broker()`.
        settings: None: those of `penstock.toml` and the environment.
        outbox: writes each message into the transaction in use, to be sent once that is committed. A function that
            returns SQLAlchemy's Session, AsyncSession or Connection in use, such as a scoped_session, or None where
            the message is to be sent at once; or `penstock.producers.contrib.django.Outbox()`.

    Raises:
        ConfigError: a setting is wrong, this is not a Dramatiq broker, or `outbox` is nothing that a message can be
            written to.
    """
    if not callable(getattr(broker, "enqueue", None)) or not hasattr(broker, "actors"):
        raise ConfigError(f"adopt takes a Dramatiq broker, such as dramatiq.get_broker(), not {broker!r}")
    write = None if outbox is None else writer_to(outbox)
    DirectSending(broker, settings or load_settings(), write).replace_enqueue()


class DirectSending:
    """Replaces the `enqueue` of a broker of Dramatiq's. Thread-safe; safe after a fork.

    Arguments:
        write: the way into an outbox; None: straight to the broker.
    """

    def __init__(self, broker: Any, settings: Settings, write: WriteEnvelope | None = None) -> None:
        self._broker, self._max_bytes = broker, settings.max_payload_bytes
        self._write = write
        self._sender = open_sender_from(settings)
        self._enqueue_elsewhere = type(broker).enqueue

    def replace_enqueue(self) -> None:
        self._broker.enqueue = self.enqueue

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        """Send a message of an actor of the broker. Returns it; one with a delay as a copy with the option `eta`.

        Arguments:
            message: a `dramatiq.Message`.
            delay: in milliseconds; None: at once.

        Raises:
            InvalidJob: the message cannot be sent (also PayloadTooLarge); BrokerUnavailable.
        """
        actor = self._broker.actors.get(message.actor_name)
        if actor is None:
            return self._enqueue_elsewhere(self._broker, message, delay=delay)
        due_at = None
        if delay is not None:
            due_at = datetime.now(UTC) + timedelta(milliseconds=delay)
            message = message.copy(options={"eta": int(due_at.timestamp() * 1000)})
        self._broker.emit_before("enqueue", message, delay)
        self.deliver(message, lane(actor.priority), due_at)
        self._broker.emit_after("enqueue", message, delay)
        return message

    def deliver(self, message: Any, priority: Priority, due_at: datetime | None) -> None:
        """Hand a message over to the broker. Raises as `enqueue`."""
        envelope = self.envelope(message, priority, due_at)
        if self._write is not None and self._write(envelope):
            return
        with sending((envelope,)):
            self._sender.send((envelope,))

    def envelope(self, message: Any, priority: Priority, due_at: datetime | None) -> Envelope:
        """Message → envelope for a worker that has adopted its actor. Raises InvalidJob."""
        envelope = _envelope(message, priority, due_at)
        if len(envelope.body) > self._max_bytes:
            raise PayloadTooLarge(envelope.kind, len(envelope.body), self._max_bytes)
        return envelope

    def close(self) -> None:
        self._sender.close()


def _envelope(message: Any, priority: Priority, due_at: datetime | None) -> Envelope:
    """The envelope of a message, in the fields of an `AdoptedJob`. Its encoder must write JSON, as the default does."""
    name, message_id = message.actor_name, message.message_id
    if not is_id(message_id):
        raise InvalidJob(f"message_id {message_id!r} of {name} must be printable text of up to 128 characters")
    encoded = message.encode()
    try:
        fields = json.loads(encoded)
        options = {key: value for key, value in fields["options"].items() if key != "eta"}
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InvalidJob(
            f"the encoder of Dramatiq's messages does not write JSON ({type(error).__name__}: {error}); use "
            "JSONEncoder, or a subclass of it"
        ) from error
    request = {"options": options, "message_timestamp": fields["message_timestamp"]}
    payload = {"args": fields["args"], "kwargs": fields["kwargs"], "request": request}
    body = body_of(json.dumps(payload, separators=(",", ":")).encode())
    queue = message.queue_name.removesuffix(_DELAYED)
    expires_at = None
    if max_age := options.get("max_age"):
        expires_at = datetime.fromtimestamp((fields["message_timestamp"] + max_age) / 1000, UTC)
    return seal(
        name,
        1,
        body,
        message_id,
        queue,
        priority,
        due_at=due_at,
        expires_at=expires_at,
        traceparent=current_traceparent(),
    )


def lane(priority: int) -> Priority:
    """An actor's priority, of which the lowest number is the most urgent and 0 the default, as one of our lanes."""
    return "normal" if priority == 0 else "high" if priority < 0 else "low"
