"""Emptying a queue: its waiting jobs are cancelled, or moved to another one.

Both fetch the jobs as a worker would, a batch at a time: first the ledger records what becomes of them, in one
transaction with the line of the audit log, then the broker forgets them. Killed in between, the messages come
again, and the workers that get them find in the ledger that they are old.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from penstock.config.errors import ConfigError, UndecodableMessage
from penstock.config.settings import Settings
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import due
from penstock.ledger.transitions.cancel import purge
from penstock.producers.senders import open_sender_from
from penstock.schemas.jobs.kind import DEAD_QUEUE, DISPATCHER_QUEUE, registry
from penstock.schemas.wire.codec import HEADER
from penstock.schemas.wire.ids import new_id
from penstock.workers.brokers import Delivery, open_consumer

_BATCH = 200
_PATIENCE_SECONDS = 2.0

Batch = tuple[list[Delivery], list[str]]
"""Deliveries that are dealt with, and ids of jobs that the ledger knew."""


@dataclass(frozen=True, slots=True)
class Emptied:
    """The result of emptying a queue, by its waiting jobs.

    Attributes:
        known: jobs that were on record: cancelled, or moved.
        unknown: others: forgotten, or moved, and on record from then on.
        kept: messages that stayed, since they run or cannot be read.
    """

    recorded: int
    unknown: int
    kept: int


def purge_queue(
    settings: Settings, database: Database, queue: str, *, actor: str, reason: str | None = None
) -> Emptied:
    """Remove the jobs that wait in the broker now. Those on record become cancelled; what runs goes on.

    Raises:
        ConfigError: it has no jobs to remove. BrokerUnavailable, LedgerUnavailable: what was done until then is done.
    """

    def forget(connection: sa.Connection, deliveries: Sequence[Delivery]) -> Batch:
        fences = [(delivery.envelope.id, _fence(delivery)) for delivery in deliveries]
        cancelled, running = purge(connection, database, fences)
        recorded = set(cancelled)
        done = [
            delivery
            for delivery in deliveries
            if delivery.envelope.id not in running and (delivery.envelope.id in recorded or not _taken_over(delivery))
        ]
        return done, cancelled

    return _empty(settings, database, queue, forget, actor=actor, act="purge", detail={"reason": reason})


def move_queue(settings: Settings, database: Database, queue: str, to: str, *, actor: str) -> Emptied:
    """Move the jobs that wait in the broker now to another queue; a dispatcher sends them there.

    Raises:
        ConfigError: one of the queues is not for jobs. BrokerUnavailable, LedgerUnavailable: what was moved until then
            is moved, and the rest waits where it was.
    """
    _check(to)
    if to == queue:
        raise ConfigError(f"queue {queue!r} cannot be moved to itself")

    def put_aside(connection: sa.Connection, deliveries: Sequence[Delivery]) -> Batch:
        readable = {}
        for delivery in deliveries:
            try:
                readable[delivery] = due.waiting(delivery.envelope)
            except UndecodableMessage:
                continue  # the next worker buries it
        fetched = [(row, _fence(delivery)) for delivery, row in readable.items() if not _taken_over(delivery)]
        moved, kept = due.move(connection, database, fetched, to)
        stays = set(kept)
        done = [d for d in readable if d.envelope.id not in stays and not _taken_over(d)]
        return done, moved

    return _empty(settings, database, queue, put_aside, actor=actor, act="move", detail={"to": to})


def _empty(
    settings: Settings,
    database: Database,
    queue: str,
    deal_with: Callable[[sa.Connection, Sequence[Delivery]], Batch],
    *,
    actor: str,
    act: str,
    detail: dict[str, str | None],
) -> Emptied:
    _check(queue)
    sender = open_sender_from(settings)
    try:
        left = sender.depths([queue])[queue]
    finally:
        sender.close()
    recorded = unknown = 0
    kept: list[Delivery] = []
    line: str | None = None
    about = {name: value for name, value in detail.items() if value is not None}
    if left == 0:
        return Emptied(0, 0, 0)
    name = f"{act}@{socket.gethostname()}-{os.getpid()}-{new_id()[-6:]}"
    consumer = open_consumer(
        settings.broker_url,
        [queue],
        name=name,
        prefix=settings.prefix,
        lease_seconds=settings.lease_seconds,
        max_message_bytes=settings.message_limit,
    )
    try:
        consumer.open()
        while left > 0 and (deliveries := consumer.fetch(min(left, _BATCH), _PATIENCE_SECONDS)):
            left -= len(deliveries)

            def record(
                connection: sa.Connection, batch: Sequence[Delivery] = deliveries, before: str | None = line
            ) -> tuple[Batch, str]:
                done, ids = deal_with(connection, batch)
                now = before or audit.write(
                    connection, actor=actor, act=act, subject=queue, subject_kind="queue", count=0, detail=about
                )
                audit.add_to_count(connection, now, len(done))
                audit.add_subjects(connection, database, now, ids)
                return (done, ids), now

            (done, ids), line = database.write(record)
            consumer.ack(done)
            recorded += len(ids)
            unknown += len(done) - len(ids)
            kept += [delivery for delivery in deliveries if delivery not in done]
    finally:
        consumer.release(kept)
        consumer.close()
    return Emptied(recorded, unknown, len(kept))


def _check(queue: str) -> None:
    if queue in ("", DISPATCHER_QUEUE, DEAD_QUEUE):
        raise ConfigError(f"{queue!r} is not a queue of jobs")


def _fence(delivery: Delivery) -> int:
    ours = delivery.envelope.headers.get(HEADER)
    fence = ours.get("fence") if isinstance(ours, dict) else None
    return fence if isinstance(fence, int) else 0


def _taken_over(delivery: Delivery) -> bool:
    """Whether it may have started under a worker that died: only Redis hands such deliveries out with the others."""
    kind = registry.find(delivery.envelope.kind)
    return delivery.deliveries > 1 and not delivery.consumer.counts_releases and not (kind is not None and kind.track)
