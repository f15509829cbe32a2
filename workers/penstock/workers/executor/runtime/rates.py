"""`RateCounter`: what a worker counts of its attempts, for its meter, and for the ledger by the minute in which their
end is on record."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from penstock.ledger.rows.rates.counting import Cell, Tally, this_minute
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.states import Outcome
from penstock.workers.executor.runtime.meter import Meter

_SUCCEEDED = Outcome.SUCCEEDED
_MANY = 500
"""Durations that are put into a histogram together, since one by one costs several times as much."""


class _Entry:
    """A tally, durations that are not in its histograms yet, and how many of its ends the meter has."""

    __slots__ = ("metered", "runs", "tally", "waits")

    def __init__(self) -> None:
        self.tally = Tally()
        self.runs: list[float] = []
        self.waits: list[float] = []
        self.metered = 0


class RateCounter:
    """Counts batches of outcomes, and keeps the numbers of a minute until they are written and the minute is over.

    Not safe from several threads, but for `refresh`: call it on the executor's loop, or when that has ended.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        meter.read_from(self.refresh)
        self._sorting = threading.Lock()
        self._minute = 0
        self._entries: dict[tuple[int, Cell], _Entry] = {}
        self._written: dict[tuple[int, Cell], int] = {}
        """The counts of those that are on record."""

    def add(self, outcomes: Sequence[AttemptOutcome]) -> None:
        """Count attempts whose outcome is on record."""
        self._minute = max(self._minute, this_minute())  # a clock that goes back must not open a minute again
        kind = queue = name = None
        for outcome in outcomes:
            claim = outcome.claim
            message = claim.message
            if outcome.name is not name or message.kind is not kind or message.queue != queue:  # most are alike
                name, kind, queue = outcome.name, message.kind, message.queue
                entry = self._entry((kind.name, queue, name.value))
                tally, runs, waits = entry.tally, entry.runs, entry.waits
            tally.count += 1
            if name is not _SUCCEEDED:
                self._meter.failed(outcome)
                if _did_not_run(outcome):
                    continue
            runs.append((outcome.finished_at - claim.started_at).total_seconds())
            if (since := message.ready_at or message.due_at or message.sent_at) is not None:
                waits.append((claim.started_at - since).total_seconds())

    def _entry(self, cell: Cell) -> _Entry:
        key = (self._minute, cell)
        if (entry := self._entries.get(key)) is None:
            entry = self._entries[key] = _Entry()
        elif len(entry.runs) >= _MANY:
            self._sort_in(cell, entry)
        return entry

    def _sort_in(self, cell: Cell, entry: _Entry) -> None:
        """Put what waits into the histograms, and let the meter have it."""
        with self._sorting:
            runs, waits = entry.runs[:], entry.waits[:]
            del entry.runs[: len(runs)], entry.waits[: len(waits)]  # the loop may have added more
            entry.tally.run.add(runs)
            entry.tally.wait.add(waits)
            count = entry.tally.count
            self._meter.attempts(cell, count - entry.metered, runs, waits)
            entry.metered = count

    def refresh(self) -> None:
        """Let the meter have all that has ended by now. Safe from any thread."""
        for (_, cell), entry in list(self._entries.items()):
            if entry.metered != entry.tally.count:
                self._sort_in(cell, entry)

    def changed(self) -> dict[tuple[int, Cell], Tally]:
        """Copies of what is to be written: all of a minute, where any of it is new."""
        changed: dict[tuple[int, Cell], Tally] = {}
        for key, entry in self._entries.items():
            if self._written.get(key) != entry.tally.count:
                self._sort_in(key[1], entry)
                changed[key] = copy = Tally()
                copy.merge(entry.tally)
        return changed

    def wrote(self, tallies: Mapping[tuple[int, Cell], Tally]) -> None:
        """These are on record, or cannot be. Forget those whose minute is over."""
        self._written |= {key: tally.count for key, tally in tallies.items()}
        minute = max(self._minute, this_minute())
        for key, count in list(self._written.items()):
            if key[0] < minute and self._entries[key].tally.count == count:
                del self._entries[key], self._written[key]


def _did_not_run(outcome: AttemptOutcome) -> bool:
    """Whether the job was quarantined, or expired."""
    claim = outcome.claim
    expires_at = claim.message.expires_at
    return claim.quarantine or (
        outcome.name is Outcome.DISCARDED and expires_at is not None and expires_at <= claim.started_at
    )
