"""Throughput, errors and durations over a time, by kind and by queue, from the rates: not from the jobs.

What it reads does not depend on the number of jobs: some thousand rows for 200 kinds. The figures of kinds and queues
come from the longest spans that fit into the time, the series from the rows of all kinds together. The last ten seconds
of each worker may be missing, and with a worker that was killed they are lost.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any

import sqlalchemy as sa

from penstock.ledger.queries.scope import EVERYTHING, Scope, may_match
from penstock.ledger.rows.rates.counting import HOUR, OF_SOURCE, SPANS
from penstock.ledger.rows.rates.histograms import Histogram
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import rates
from penstock.schemas.states import Outcome

MOST_POINTS = 180
SHARES = (0.5, 0.95, 0.99)
_LONGEST = {1: 2 * HOUR, 10: 26 * HOUR}
"""Span → the longest time, in minutes, that is read from its rows."""

_AHEAD = HOUR
"""Minutes by which a worker's clock may be ahead."""
_RECENT = 10
"""Shortest spans, from the end on, in which the last minute of a kind is looked for."""

_ERRORS = (Outcome.RETRY, Outcome.CRASHED, Outcome.DEAD)
_OTHERS = (Outcome.SNOOZED, Outcome.CANCELLED, Outcome.INTERRUPTED)
"""Of attempts that came to no result."""


@dataclass(frozen=True, slots=True)
class Durations:
    """Percentiles and the mean of durations, in seconds; None: there were none. The percentiles are within 10 %."""

    p50: float | None
    p95: float | None
    p99: float | None
    mean: float | None

    @classmethod
    def of(cls, histogram: Histogram) -> Durations:
        (p50, p95, p99), mean = histogram.summary(SHARES)
        return cls(p50, p95, p99, mean)


@dataclass(frozen=True, slots=True)
class Figures:
    """Numbers of a time.

    Attributes:
        ended: attempts with a result: `succeeded`, `discarded`, `retry`, `crashed`, `dead`.
        errors: those of the last three; each failed attempt counts, also where the job succeeds later.
        error_rate: errors as a share of `ended`; None: nothing ended.
        per_second: `ended`, on average.
        outcomes: how many by outcome, `snoozed`, `cancelled` and `interrupted` included.
        wait: from when a job was enqueued, or due, to the start of the attempt.
        run: from the start of an attempt to its end.
        last: start of the last minute in which there was any; if that is long ago, of the ten minutes, hour or day.
    """

    ended: int
    errors: int
    error_rate: float | None
    per_second: float
    outcomes: dict[str, int]
    wait: Durations
    run: Durations
    last: datetime | None


@dataclass(frozen=True, slots=True)
class Point:
    """Point of a series: `Figures` of the time from `at` on, without the means."""

    at: datetime
    ended: int
    errors: int
    wait_p50: float | None
    wait_p95: float | None
    run_p50: float | None
    run_p95: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of a time.

    Attributes:
        since, until: the time. `since` is rounded down to a minute, ten minutes or an hour, and so are points.
        step: length of a point.
        series: every point, also those where nothing happened.
        kinds, queues: by name, those with most ends first.
        pairs: by kind and queue, likewise.
    """

    since: datetime
    until: datetime
    step: timedelta
    total: Figures
    series: list[Point]
    kinds: dict[str, Figures]
    queues: dict[str, Figures]
    pairs: dict[tuple[str, str], Figures]

    def slowest(self, most: int = 10) -> list[str]:
        """Kinds by the time that 95 % of their attempts do not exceed, the slowest first."""
        slow = {kind: figures.run.p95 for kind, figures in self.kinds.items() if figures.run.p95 is not None}
        return sorted(slow, key=lambda kind: (-slow[kind], kind))[:most]

    def plain(self) -> dict[str, Any]:
        """Report as plain values, for JSON."""
        return {
            "since": self.since,
            "until": self.until,
            "step_seconds": self.step.total_seconds(),
            "total": asdict(self.total),
            "series": [asdict(point) for point in self.series],
            "kinds": {kind: asdict(figures) for kind, figures in self.kinds.items()},
            "queues": {queue: asdict(figures) for queue, figures in self.queues.items()},
            "slowest": self.slowest(),
        }


class _Sum:
    """Counts by outcome, and histograms."""

    __slots__ = ("last", "outcomes", "run", "run_ms", "wait", "wait_ms")

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.run = self.wait = self.run_ms = self.wait_ms = self.last = 0

    def count(self, minute: int, outcome: str, count: int, run_ms: int, wait_ms: int, run: int, wait: int) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count
        self.run += run
        self.wait += wait
        self.run_ms += run_ms
        self.wait_ms += wait_ms
        if minute > self.last:
            self.last = minute

    @classmethod
    def of(cls, parts: Sequence[_Sum]) -> _Sum:
        """Sum of all parts; a single one is returned itself."""
        if len(parts) == 1:
            return parts[0]
        whole = cls()
        for part in parts:
            for outcome, count in part.outcomes.items():
                whole.outcomes[outcome] = whole.outcomes.get(outcome, 0) + count
            whole.run += part.run
            whole.wait += part.wait
            whole.run_ms += part.run_ms
            whole.wait_ms += part.wait_ms
            whole.last = max(whole.last, part.last)
        return whole

    @property
    def ended(self) -> int:
        return sum(self.outcomes.values()) - sum(self.outcomes.get(outcome, 0) for outcome in _OTHERS)

    @property
    def errors(self) -> int:
        return sum(self.outcomes.get(outcome, 0) for outcome in _ERRORS)

    def durations(self) -> tuple[Histogram, Histogram]:
        """Histograms of wait and run."""
        return Histogram(self.wait, self.wait_ms / 1000), Histogram(self.run, self.run_ms / 1000)


def report(
    database: Database,
    since: timedelta,
    *,
    kinds: Sequence[str] | None = None,
    queues: Sequence[str] | None = None,
    scope: Scope = EVERYTHING,
    now: datetime | None = None,
) -> Report:
    """The figures of the time from so long ago until now.

    Arguments:
        since: up to 30 days, or as long as rates are kept. Up to two hours are read by the minute, up to 26 hours by
            ten minutes, longer times by the hour.
        kinds, queues: only these; None: all.
        scope: only what is within its kinds and queues. The rates know no tenants, so nothing is within a scope that
            is bounded by these.

    Raises:
        LedgerUnavailable.
    """
    until = now or datetime.now(UTC)
    last = int(until.timestamp() // 60)
    minutes, span = _window(since)
    step = span * -(-minutes // (span * MOST_POINTS))
    start = (last - minutes + 1) // step * step
    points = [_Sum() for _ in range((last - start) // step + 1)]
    pairs: dict[tuple[str, str], _Sum] = {}
    # The conditions let more pass: some databases take "A" and "a" as equal.
    excluded: set[tuple[str, str]] = set()

    def sum_of(pair: tuple[str, str]) -> _Sum | None:
        """Sum of the kind and queue; None: they were not asked for."""
        if (sums := pairs.get(pair)) is None and pair not in excluded:
            if _is_asked(*pair, kinds, queues, scope):
                sums = pairs[pair] = _Sum()
            else:
                excluded.add(pair)
        return sums

    where = _within(kinds, queues, scope)
    ranges = _ranges(span, start, last)
    of_points = span if where else -span
    # One statement: rows may be folded between two.
    parts = [sa.and_(rates.c.span == OF_SOURCE, rates.c.minute >= start)]
    parts += [_of_span(each, minutes) for each, minutes in ranges.items() if minutes]
    parts.append(_of_span(of_points, range(start, last + _AHEAD, span)))
    recent = range(max(start, (last // span - _RECENT + 1) * span), last + _AHEAD, span)

    def read_rates(connection: sa.Connection) -> None:
        for each, minute, kind, queue, outcome, count, run_ms, wait_ms, run, wait in connection.execute(
            _ROWS.where(sa.or_(*parts), *where)
        ).all():
            values = minute, outcome, count, run_ms, wait_ms, _number(run), _number(wait)
            if each >= 0:
                if (sums := sum_of((kind, queue))) is None:
                    continue
                if each == OF_SOURCE or minute in ranges.get(each, ()):
                    sums.count(*values)
            if each in (OF_SOURCE, of_points):
                points[(min(minute, last) - start) // step].count(*values)  # a worker's clock may be ahead
        for row in connection.execute(_LASTS.where(_of_span(span, recent), *where)):
            if (sums := pairs.get((row.kind, row.queue))) is not None:
                sums.last = max(sums.last, row.minute)

    if scope.tenants is None:
        database.read(read_rates)
    began = _time(start)
    seconds = max((until - began).total_seconds(), 1.0)
    by_kind: defaultdict[str, list[_Sum]] = defaultdict(list)
    by_queue: defaultdict[str, list[_Sum]] = defaultdict(list)
    for (kind, queue), sums in pairs.items():
        by_kind[kind].append(sums)
        by_queue[queue].append(sums)
    figures = cache(partial(_figures, seconds))  # most kinds have one queue

    def by_name(sums_by_name: dict[Any, _Sum]) -> dict[Any, Figures]:
        return {name: figures(sums) for name, sums in sorted(sums_by_name.items(), key=_most)}

    return Report(
        began,
        until,
        timedelta(minutes=step),
        figures(_Sum.of([*pairs.values()])),
        [_point(_time(start + slot * step), sums) for slot, sums in enumerate(points)],
        by_name({kind: _Sum.of(parts) for kind, parts in by_kind.items()}),
        by_name({queue: _Sum.of(parts) for queue, parts in by_queue.items()}),
        by_name(pairs),
    )


def error_counts(database: Database, since: timedelta) -> dict[tuple[str, str], tuple[int, int]]:
    """Queue and kind → `errors` and `ended` of the time from so long ago until now (`Figures`).

    Raises:
        LedgerUnavailable.
    """
    minutes, span = _window(since)
    start = (int(time.time() // 60) - minutes + 1) // span * span
    named = [sa.func.min(column).label(column.name) for column in (rates.c.kind, rates.c.queue, rates.c.outcome)]
    select = sa.select(*named, sa.func.sum(rates.c.count).label("number")).group_by(rates.c.cell)
    folded = _of_span(span, range(start, start + minutes + _AHEAD, span))
    within = select.where(sa.or_(sa.and_(rates.c.span == OF_SOURCE, rates.c.minute >= start), folded))
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for row in database.read(lambda connection: connection.execute(within).all()):
        if row.outcome not in _OTHERS:
            errors, ended = counts.get((row.queue, row.kind), (0, 0))
            number = int(row.number)
            counts[row.queue, row.kind] = errors + number * (row.outcome in _ERRORS), ended + number
    return counts


def _window(since: timedelta) -> tuple[int, int]:
    """Length of a time in minutes, and the shortest span that is read for it."""
    minutes = max(int(since / timedelta(minutes=1)), 1)
    return minutes, next((span for span, longest in _LONGEST.items() if minutes <= longest), HOUR)


def _of_span(span: int, minutes: range) -> sa.ColumnElement[bool]:
    """Condition: a row of the span, from one of these minutes on. They are listed: from bounds PostgreSQL concludes
    that most rows match, since those of short spans are all recent, and reads the whole table."""
    return sa.and_(rates.c.span == span, rates.c.minute.in_(list(minutes)))


def _ranges(span: int, start: int, last: int) -> dict[int, range]:
    """Span → minutes of the rows that are read: the shortest up to where a longer one begins, and so on."""
    ranges = {}
    for longer in [each for each in SPANS if each > span]:
        if (end := -(-start // longer) * longer) > last:
            break
        ranges[span] = range(start, end, span)
        span, start = longer, end
    return {**ranges, span: range(start, last + _AHEAD, span)}


def _within(kinds: Sequence[str] | None, queues: Sequence[str] | None, scope: Scope) -> list[sa.ColumnElement[bool]]:
    """Conditions on kinds and queues; none if all are asked for."""
    where: list[sa.ColumnElement[bool]] = []
    for column, names in ((rates.c.kind, kinds), (rates.c.queue, queues)):
        if names is not None:
            where.append(column.in_(names))
    for column, patterns in ((rates.c.kind, scope.kinds), (rates.c.queue, scope.queues)):
        if patterns is not None:
            where.append(may_match(column, patterns))
    return where


_ROWS = sa.select(
    *(
        rates.c[name]
        for name in ("span", "minute", "kind", "queue", "outcome", "count", "run_ms", "wait_ms", "run", "wait")
    )
)
_LASTS = sa.select(
    sa.func.min(rates.c.kind).label("kind"),
    sa.func.min(rates.c.queue).label("queue"),
    sa.func.max(rates.c.minute).label("minute"),
).group_by(rates.c.cell)


def _is_asked(kind: str, queue: str, kinds: Sequence[str] | None, queues: Sequence[str] | None, scope: Scope) -> bool:
    return (
        scope.includes(kind, queue, None) and (kinds is None or kind in kinds) and (queues is None or queue in queues)
    )


def _figures(seconds: float, sums: _Sum) -> Figures:
    ended, errors = sums.ended, sums.errors
    wait, run = sums.durations()
    return Figures(
        ended,
        errors,
        errors / ended if ended else None,
        ended / seconds,
        dict(sorted(sums.outcomes.items())),
        Durations.of(wait),
        Durations.of(run),
        _time(sums.last) if sums.last else None,
    )


def _point(at: datetime, sums: _Sum) -> Point:
    (wait_p50, wait_p95), (run_p50, run_p95) = (of.percentiles(SHARES[:2]) for of in sums.durations())
    return Point(at, sums.ended, sums.errors, wait_p50, wait_p95, run_p50, run_p95)


def _number(histogram: bytes | None) -> int:
    return int.from_bytes(histogram or b"", "little")


def _most(item: tuple[Any, _Sum]) -> tuple[int, Any]:
    name, sums = item
    return -sums.ended, name


def _time(minute: int) -> datetime:
    return datetime.fromtimestamp(minute * 60, UTC)
