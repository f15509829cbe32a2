"""The conditions of alerts: which of them hold now, for which queues, kinds, schedules and outboxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa

from penstock.config.errors import BrokerUnavailable
from penstock.config.printable import length
from penstock.config.sections.alerts import AlertSettings, matches
from penstock.config.settings import Settings, redact_url
from penstock.ledger.members.roster import Roster
from penstock.ledger.queries import fleet, stats
from penstock.ledger.queries.fleet import QueueBacklogs
from penstock.ledger.queries.rates import error_counts
from penstock.ledger.queries.stats import outbox_name
from penstock.ledger.schedules.firings import missed_times
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database

LEDGERS_OUTBOX = "ledger"
"""Subject of the outbox in the ledger's database."""
_FEWEST_FAILED = 5
"""Failed attempts in the window below which an error rate is not one."""
_MOST_SCHEDULES = 1000


class Holding(NamedTuple):
    """A condition that holds: its value, and the same in words."""

    value: float | None
    detail: str


@dataclass(slots=True)
class Judgement:
    """An alert, as read from the installation.

    Attributes:
        at: the database's time before the reading.
        holding: subject → the condition that holds for it; of other subjects it does not.
        unknown: subjects that could not be read.
    """

    name: str
    settings: AlertSettings
    at: datetime
    holding: dict[str, Holding] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)


class Conditions:
    """Reads the installation. For one thread.

    Arguments:
        backlogs: opens the broker's queues when an alert needs them.
    """

    def __init__(self, settings: Settings, ledger: Database, backlogs: Callable[[], QueueBacklogs]) -> None:
        self._settings, self._ledger, self._open = settings, ledger, backlogs
        self._backlogs: QueueBacklogs | None = None
        self._cache: dict[str, Any] = {}

    def judge(self, alerts: Mapping[str, AlertSettings]) -> list[Judgement]:
        """Judge alerts now. Those that need a broker that does not answer are left out.

        Raises:
            LedgerUnavailable.
        """
        self._cache = {}
        judgements = []
        for name, alert in alerts.items():
            judgement = Judgement(name, alert, self._read("now", self._now))
            try:
                _JUDGES[alert.when](self, judgement)
            except BrokerUnavailable:
                continue
            judgements.append(judgement)
        return judgements

    def close(self) -> None:
        if self._backlogs is not None:
            self._backlogs.close()

    # What is read; once in a round, whatever number of alerts needs it.

    def _read(self, name: str, read: Callable[[], Any]) -> Any:
        if name not in self._cache:
            self._cache[name] = read()
        return self._cache[name]

    def _now(self) -> datetime:
        now: datetime = self._ledger.read(lambda connection: connection.execute(sa.select(from_now())).scalar_one())
        return now

    def _roster(self) -> Roster:
        read = partial(Roster.read, lease=self._settings.lease)
        roster: Roster = self._read("roster", lambda: self._ledger.read(read))
        return roster

    def _waiting(self, alert: AlertSettings) -> dict[str, tuple[int, float | None]]:
        def read_waiting() -> dict[str, tuple[int, float | None]]:
            if self._backlogs is None:
                self._backlogs = self._open()
            return fleet.waiting_in_queues(self._settings, self._ledger, self._backlogs)

        waiting = self._read("waiting", read_waiting)
        return {queue: backlog for queue, backlog in waiting.items() if matches(alert.queue, queue)}

    def _by_kind(self, alert: AlertSettings, counts: Mapping[tuple[str, str], int]) -> Iterator[tuple[str, int]]:
        """Kind and number of what matches the alert's queue and kind; counts are by queue and kind."""
        sums: dict[str, int] = {}
        for (queue, kind), count in counts.items():
            if matches(alert.queue, queue) and matches(alert.kind, kind):
                sums[kind] = sums.get(kind, 0) + count
        return iter(sorted(sums.items()))

    # The conditions.

    def _oldest_waiting(self, judgement: Judgement) -> None:
        for queue, (jobs, oldest) in self._waiting(judgement.settings).items():
            if oldest is None and jobs:
                judgement.unknown.add(queue)
            elif oldest is not None and oldest > judgement.settings.most:
                waits = length(timedelta(seconds=oldest))
                judgement.holding[queue] = Holding(
                    oldest, f"the oldest of {jobs:,} jobs in queue {queue} waits {waits}"
                )

    def _depth(self, judgement: Judgement) -> None:
        for queue, (jobs, _) in self._waiting(judgement.settings).items():
            if jobs > judgement.settings.most:
                judgement.holding[queue] = Holding(jobs, f"{jobs:,} jobs wait in queue {queue}")

    def _silent_queue(self, judgement: Judgement) -> None:
        for queue, jobs in fleet.silent_queues(self._waiting(judgement.settings), self._roster()).items():
            judgement.holding[queue] = Holding(
                jobs, f"{jobs:,} jobs wait in queue {queue}, which no live worker consumes"
            )

    def _dead_letters(self, judgement: Judgement) -> None:
        window = judgement.settings.window
        counts = self._read(f"dead letters {window}", lambda: fleet.open_dead_letters(self._ledger, since=window))
        for kind, count in self._by_kind(judgement.settings, counts):
            if count > judgement.settings.most:
                named = f" of {kind}" if kind else ""
                detail = f"{count:,} dead letters{named} within {length(window)} wait for a decision"
                judgement.holding[kind] = Holding(count, detail)

    def _error_rate(self, judgement: Judgement) -> None:
        window = judgement.settings.window
        counts = self._read(f"attempts {window}", lambda: error_counts(self._ledger, window))
        failed = dict(self._by_kind(judgement.settings, {pair: number for pair, (number, _) in counts.items()}))
        ended = dict(self._by_kind(judgement.settings, {pair: number for pair, (_, number) in counts.items()}))
        for kind, number in failed.items():
            share = number / max(ended[kind], 1)
            if number >= _FEWEST_FAILED and share > judgement.settings.most:
                detail = (
                    f"{number:,} of {ended[kind]:,} attempts of {kind} ({share:.0%}) failed within {length(window)}"
                )
                judgement.holding[kind] = Holding(share, detail)

    def _no_dispatcher(self, judgement: Judgement) -> None:
        if not self._roster().dispatchers:
            detail = "no dispatcher is alive: no delayed job, retry, schedule or outbox is sent"
            judgement.holding[""] = Holding(None, detail)

    def _schedule_late(self, judgement: Judgement) -> None:
        overdue = self._read("overdue", lambda: fleet.overdue_schedules(self._ledger, _MOST_SCHEDULES))
        for name, lateness in overdue:
            if matches(judgement.settings.schedule, name) and lateness.total_seconds() > judgement.settings.most:
                detail = f"schedule {name} is due for {length(lateness)} and has not fired"
                judgement.holding[name] = Holding(lateness.total_seconds(), detail)

    def _schedule_missed(self, judgement: Judgement) -> None:
        window = judgement.settings.window
        missed = self._read(f"missed {window}", lambda: missed_times(self._ledger, window, _MOST_SCHEDULES))
        for name, count in missed.items():
            if matches(judgement.settings.schedule, name) and count > judgement.settings.most:
                detail = f"{count:,} times of schedule {name} within {length(window)} made no job"
                judgement.holding[name] = Holding(count, detail)

    def _outbox_lag(self, judgement: Judgement) -> None:
        own = redact_url(self._ledger.url)
        outboxes = self._read("outboxes", lambda: stats.outboxes(self._ledger, self._settings.outbox_urls))
        for outbox in outboxes:
            name = LEDGERS_OUTBOX if outbox.outbox == own else outbox_name(outbox.outbox)
            if not matches(judgement.settings.outbox, name):
                continue
            if outbox.lag_seconds is None:
                judgement.unknown.add(name)
            elif outbox.lag_seconds > judgement.settings.most:
                lag = length(timedelta(seconds=outbox.lag_seconds))
                detail = f"{outbox.jobs:,} committed jobs of outbox {name} are not sent, the first for {lag}"
                judgement.holding[name] = Holding(outbox.lag_seconds, detail)


_JUDGES: dict[str, Callable[[Conditions, Judgement], None]] = {
    name: getattr(Conditions, f"_{name}")
    for name in (
        *("oldest_waiting", "depth", "dead_letters", "error_rate", "silent_queue"),
        *("no_dispatcher", "schedule_late", "schedule_missed", "outbox_lag"),
    )
}
