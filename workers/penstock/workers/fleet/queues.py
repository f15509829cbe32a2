"""Queues as they really are: what waits, who consumes, what is paused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from penstock.config.settings import Settings
from penstock.ledger.members import heartbeats
from penstock.ledger.members.controls import Control, Controls
from penstock.ledger.members.roster import Member, Roster
from penstock.ledger.sql.database import Database
from penstock.producers.senders import Sender
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, registry


@dataclass(frozen=True, slots=True)
class QueueView:
    """A queue.

    Attributes:
        lanes: jobs that wait in the broker, by priority.
        workers: those that consume it, dispatchers for theirs.
        left: workers that were told to stop consuming it.
        declared: the engine that the settings name; None: they do not.
        pause: that holds its jobs back.
        concurrency, weight: set by an operator over the settings; None: as these say.
    """

    name: str
    lanes: dict[str, int]
    workers: tuple[Member, ...]
    left: tuple[Member, ...]
    declared: str | None
    pause: Control | None
    concurrency: int | None
    weight: int | None
    own_weight: int
    max_length: int | None

    @property
    def waiting(self) -> int:
        return sum(self.lanes.values())

    @property
    def engines(self) -> dict[str, int]:
        """The engines that really consume it → how many workers of each."""
        return dict(sorted(Counter(worker.engine for worker in self.workers).items()))

    @property
    def consumers(self) -> str:
        """`2 celery, 1 dramatiq (1 told to stop)`; empty where no worker consumes it."""
        engines = ", ".join(f"{count} {engine}" for engine, count in self.engines.items())
        leaving = f"{len(self.left)} told to stop" if self.left else ""
        return f"{engines} ({leaving})" if engines and leaving else engines or leaving


@dataclass(frozen=True, slots=True)
class Fleet:
    """Workers, dispatchers and controls at one time; empty where the ledger cannot be asked."""

    roster: Roster = field(default_factory=lambda: Roster((), ()))
    controls: Controls = field(default_factory=Controls)

    @classmethod
    def read(cls, database: Database, lease: timedelta) -> Fleet:
        def read_both(connection: sa.Connection) -> Fleet:
            return cls(Roster.read(connection, lease), Controls.read(connection))

        return database.read(read_both)


def queue_names(settings: Settings, database: Database, fleet: Fleet) -> list[str]:
    """Queues of the settings, of imported kinds, of workers and of controls: without a look at jobs or the broker."""
    names = {DISPATCHER_QUEUE} | registry.queues() | set(settings.queues) | fleet.roster.queues()
    names |= {queue for worker in fleet.roster.workers for queue in worker.left_queues}
    names |= {control.name for control in fleet.controls.all if control.scope == "queue"}
    return sorted(names | set(heartbeats.known_kinds(database).values()))


def view_queues(settings: Settings, fleet: Fleet, sender: Sender, names: Sequence[str]) -> list[QueueView]:
    """These queues, in this order. Raises BrokerUnavailable."""
    lanes = sender.lane_depths(names)
    return [_view(settings, fleet, name, lanes[name]) for name in names]


def _view(settings: Settings, fleet: Fleet, name: str, lanes: dict[str, int]) -> QueueView:
    of_queue, controls = settings.queue(name), fleet.controls
    if name == DISPATCHER_QUEUE:
        return QueueView(name, lanes, fleet.roster.dispatchers, (), None, None, None, None, 1, None)
    return QueueView(
        name,
        lanes,
        tuple(fleet.roster.consuming(name)),
        tuple(fleet.roster.told_to_leave(name)),
        of_queue.engine if name in settings.queues else None,
        controls.pause_of(name),
        controls.concurrency.get(name),
        controls.weights.get(name),
        of_queue.weight,
        of_queue.max_length,
    )


def as_values(control: Control | None) -> dict[str, Any] | None:
    """A control as plain values."""
    if control is None:
        return None
    return {
        "scope": control.scope,
        "name": control.name,
        "target": control.target,
        "by": control.actor,
        "reason": control.reason,
        "since": control.since,
        "until": control.until,
    }
