"""Checks of an installation that runs: who is alive, and what waits in vain or too long.

Each reads the ends of indexes or a bounded number of rows, however many there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import sqlalchemy as sa

from penstock.config.errors import BrokerUnavailable
from penstock.config.settings import Settings
from penstock.ledger.members import controls, heartbeats
from penstock.ledger.members.leases import await_renewal
from penstock.ledger.members.roster import Member, Roster, last_dispatcher
from penstock.ledger.queries import fleet, stats
from penstock.ledger.queries.scope import Scope
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.producers.explain.held import resuming
from penstock.producers.explain.pools import START_DISPATCHER
from penstock.producers.explain.wording import length, seen, short
from penstock.producers.senders import open_backlogs
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, registry
from penstock.workers.telemetry.findings import Finding, fail, ok, warn

LATE = timedelta(minutes=1)
"""What a dispatcher does within a second on a good day is late by then."""
PRUNED_LATE = timedelta(hours=1)
READ_ROWS, OLDEST_ROWS = 20_000, 1000
"""Jobs read to find kinds without a handler, and to see whether retention keeps up."""
NAMED = 10

_CHECK_DISPATCHER = (
    "see the dispatcher's log for what it waits for: the broker, the ledger, or a queue at its max_length"
)


def review_operation(settings: Settings, database: Database) -> Iterator[Finding]:
    """The findings. The ledger is set up and answers. Raises LedgerUnavailable if it stops to."""

    def read_members(connection: sa.Connection) -> tuple[Roster, Member | None, datetime]:
        now = connection.execute(sa.select(from_now())).scalar_one()
        return Roster.read(connection, settings.lease), last_dispatcher(connection), now

    await_renewal(database, settings.lease)
    roster, last, now = database.read(read_members)
    if roster.dispatchers:
        yield ok(
            "dispatchers", f"{len(roster.dispatchers)} alive: {_names(member.name for member in roster.dispatchers)}"
        )
    else:
        detail = f"none is alive ({seen(last, now, settings.lease)}): no delayed job, retry, schedule or outbox is sent"
        yield fail("dispatchers", detail, START_DISPATCHER)
    yield from _paused(database)
    yield from _queues(settings, database, roster)
    yield _kinds(database, roster)
    yield from _late(settings, database)
    yield _retention(settings, database)
    yield _dead_letters(database)
    if resting := fleet.count_resting(database):
        detail = _names(f"{count:,} of {kind}" for kind, count in sorted(resting.items()))
        advice = "start a dispatcher with the code that they began with"
        yield warn("workflows", f"{detail} rest: their code was changed", advice)


def _paused(database: Database) -> Iterator[Finding]:
    for pause in controls.in_force(database).pauses:
        end = f", until {pause.until:%Y-%m-%d %H:%M:%SZ}" if pause.until else ""
        reason = f" ({short(pause.reason)})" if pause.reason else ""
        detail = f"{pause.target} is paused by {pause.actor} since {pause.since:%Y-%m-%d %H:%M:%SZ}{reason}{end}"
        yield warn("paused", detail, resuming(pause))


def _queues(settings: Settings, database: Database, roster: Roster) -> Iterator[Finding]:
    backlogs = open_backlogs(settings)
    try:
        waiting = fleet.waiting_in_queues(settings, database, backlogs)
    except BrokerUnavailable:  # the check of the broker says so
        return
    finally:
        backlogs.close()
    stuck = fleet.silent_queues(waiting, roster)
    alive = {*roster.queues(), *stuck}
    idle = sorted(queue for queue in settings.queues if queue not in alive)
    if stuck:
        detail = _names(f"{queue!r} has {jobs:,} waiting jobs and no live worker" for queue, jobs in stuck.items())
        yield fail("queues", f"queue {detail}", f"penstock worker --queues {','.join([*stuck][:NAMED])} --import …")
    if idle:
        detail = f"of penstock.toml no live worker consumes {_names(map(repr, idle))}; nothing waits there"
        yield warn(
            "queues", detail, f"penstock worker --queues {','.join(idle[:NAMED])} --import …; or delete them there"
        )
    if not stuck and not idle:
        jobs = sum(size for size, _ in waiting.values())
        yield ok("queues", f"{len(roster.workers)} live workers, {jobs:,} jobs wait in {len(waiting)} queues")


def _kinds(database: Database, roster: Roster) -> Finding:
    lost: list[tuple[str, str, int]] = []
    for (queue, kind), count in sorted(fleet.waiting_kinds(database, READ_ROWS).items()):
        declared = registry.find(kind)
        names = {kind, kind if declared is None else declared.name}
        workers = roster.consuming(queue)
        if workers and not any(names & worker.kinds for worker in workers):
            lost.append((queue, kind, count))
    if not lost:
        return ok("kinds", "each kind that waits has a live worker with its handler")
    detail = _names(f"{count:,} jobs of {kind} in queue {queue!r}" for queue, kind, count in lost)
    advice = (
        "start workers of these queues with --import of the modules that handle them, before unknown_kind_grace is over"
    )
    return fail("kinds", f"no live worker has a handler for {detail}", advice)


def _late(settings: Settings, database: Database) -> Iterator[Finding]:
    late = fleet.lateness(database)
    if late > LATE:
        yield fail("due jobs", f"the first one is due for {length(late)} and not sent", _CHECK_DISPATCHER)
    else:
        yield ok("due jobs", "none is late")
    if (overdue := fleet.overdue_schedule(database)) is not None and overdue.lateness > LATE:
        detail = f"{overdue.name!r} is due for {length(overdue.lateness)} and has not fired"
        advice = (
            f"penstock schedules show {overdue.name}; start the dispatchers with --import of the module of its kind"
        )
        yield fail("firing", detail, advice)
    else:
        yield ok("firing", "no schedule is late")
    for outbox in stats.outboxes(database, settings.outbox_urls):
        if outbox.jobs is None or outbox.lag_seconds is None:
            yield fail(
                "outbox", f"{outbox.outbox}: {outbox.trouble}", "see docs/outbox.md for its table and its setting"
            )
        elif outbox.lag_seconds > LATE.total_seconds():
            lag = length(timedelta(seconds=outbox.lag_seconds))
            yield fail("outbox", f"{outbox.outbox}: {outbox.jobs:,} jobs, the first for {lag}", _CHECK_DISPATCHER)
        else:
            yield ok("outbox", f"{outbox.outbox}: {outbox.jobs:,} jobs")


def _retention(settings: Settings, database: Database) -> Finding:
    now, over = datetime.now(UTC), timedelta()
    for state, ended_at in fleet.oldest_ended(database, OLDEST_ROWS):
        kept: timedelta | None = getattr(settings.retention, state.value)
        if kept is not None:
            over = max(over, now - ended_at - kept)
    if over > PRUNED_LATE:
        detail = f"it is behind: jobs are kept for {length(over)} after the end of their retention"
        return warn(
            "retention", detail, "penstock db prune takes no rests; shorten [retention], or see the dispatcher's log"
        )
    return ok("retention", "it keeps up")


def _dead_letters(database: Database) -> Finding:
    counts = fleet.open_dead_letters(database, since=timedelta(hours=1))
    if not counts:
        return ok("dead letters", "none in the last hour")
    listed = _names(f"{count:,} of {kind or 'no kind'} in {queue!r}" for (queue, kind), count in counts.most_common())
    advice = "penstock deadletters groups says why; then penstock deadletters replay, or discard"
    return warn("dead letters", f"{counts.total():,} in the last hour: {listed}", advice)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Numbers of jobs that wait, and of members that are alive.

    Attributes:
        queues: name → jobs that wait in the broker, and for how many seconds the first one does; None: that is unknown.
            None: the broker does not answer.
        dead_letters: queue and kind → those that wait for a decision.
    """

    roster: Roster
    queues: dict[str, tuple[int, float | None]] | None
    dead_letters: Counter[fleet.QueueAndKind]
    outboxes: list[stats.OutboxStats]

    @classmethod
    def read(cls, settings: Settings, database: Database) -> Waiting:
        """Raises LedgerUnavailable."""
        roster = database.read(partial(Roster.read, lease=settings.lease))
        all_queues = {
            *settings.queues,
            *registry.queues(),
            *roster.queues(),
            *heartbeats.known_kinds(database).values(),
        }
        return cls(
            roster,
            _backlogs(settings, all_queues - {DISPATCHER_QUEUE}),
            fleet.open_dead_letters(database),
            stats.outboxes(database, settings.outbox_urls),
        )

    def oldest(self, scope: Scope) -> tuple[str, float] | None:
        """The queue whose first job waits longest, and for how many seconds; None: nothing waits, or it is unknown."""
        ages = [(age, queue) for queue, (_, age) in (self.queues or {}).items() if age and scope.includes_queue(queue)]
        return max(((queue, age) for age, queue in ages), key=lambda pair: pair[1], default=None)


def _backlogs(settings: Settings, queues: Iterable[str]) -> dict[str, tuple[int, float | None]] | None:
    backlogs = open_backlogs(settings)
    try:
        matching = backlogs.read(sorted(queues))
    except BrokerUnavailable:
        return None
    finally:
        backlogs.close()
    return {queue: (jobs, oldest) for queue, (jobs, oldest) in matching.items()}


def _names(names: Iterator[str] | map[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more
