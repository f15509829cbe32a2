"""Messages that running tasks send: at once, as in Celery. One under the id of the task itself is kept for its end."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime

from penstock.producers.contrib.celery import delayed
from penstock.producers.senders import Sender
from penstock.schemas.wire.codec import Envelope


@dataclass(slots=True)
class Resent:
    """The message that a running task sends under its own id: that of a retry or of a replacement.

    Attributes:
        id: the task's.
        envelope: the message; None: none was sent.
        due_at: when it is due; None: at once.
    """

    id: str
    envelope: Envelope | None = None
    due_at: datetime | None = None


running: ContextVar[Resent | None] = ContextVar("penstock_celery_task", default=None)
"""The task that runs in this thread."""


class Sending:
    """Sends messages of tasks to our queues. Thread-safe."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def send(self, envelope: Envelope, due_at: datetime | None) -> None:
        """Send a message, or keep it for the outcome of the task that runs under its id.

        Raises:
            BrokerUnavailable: it may not have been sent.
        """
        task = running.get()
        if task is not None and task.id == envelope.id:
            task.envelope, task.due_at = envelope, due_at
        else:
            self._sender.send([delayed(envelope, due_at)])
