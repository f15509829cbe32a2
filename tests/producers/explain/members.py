"""Workers, dispatchers, brokers and jobs to be explained."""

from __future__ import annotations

from datetime import timedelta

from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.producers.explain.queue_position import QueuePosition

HOUR = timedelta(hours=1)


MINUTE = timedelta(minutes=1)


KINDS = (
    "ledger.note",
    "ledger.pay",
    "ledger.ring",
    "ledger.login",
    *("explain.quiet", "explain.only", "explain.timed"),
)


def worker(
    ledger: Database,
    name: str = "w1",
    *,
    queues: tuple[str, ...] = ("notes",),
    kinds: tuple[str, ...] = KINDS,
    lease: timedelta = HOUR,
) -> None:
    served = dict.fromkeys(kinds, "notes")
    heartbeats.register(ledger, name, engine="celery", queues=queues, kinds=served, lease=lease)


def dispatcher(ledger: Database, name: str = "d1", *, lease: timedelta = HOUR) -> None:
    heartbeats.register(ledger, name, engine="dispatcher", queues=["dispatcher"], kinds={}, lease=lease)


class Empty:
    """The positions of a broker that has lost everything."""

    def find(self, job_id: str, queue: str, priority: str) -> QueuePosition:
        return QueuePosition(False, 0)

    def close(self) -> None: ...


class At:
    """The positions of a broker that has a job here."""

    def __init__(self, position: QueuePosition) -> None:
        self.position = position

    def find(self, job_id: str, queue: str, priority: str) -> QueuePosition:
        return self.position

    def close(self) -> None: ...
