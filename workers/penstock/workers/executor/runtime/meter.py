"""`Meter`: what a worker measures of its own steps and attempts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penstock.ledger.rows.rates.counting import Cell
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.wire.codec import Message


class Meter:
    """Counts nothing: the meter of a worker whose metrics no one asks for.

    `crashed` and `failed` are called on the executor's loop, so they must be quick; the others in any thread.
    """

    def read_from(self, refresh: Callable[[], None]) -> None:
        """Call `refresh` before the numbers are read: it has `attempts` called for what has ended by then."""

    def step(self, name: str, seconds: float) -> None:
        """A step for many jobs is done: `fetch` (that brought some), `claim`, `record` or `acknowledge`."""

    def crashed(self, message: Message) -> None:
        """The job was claimed again after a crash of its worker."""

    def failed(self, outcome: AttemptOutcome) -> None:
        """An attempt ended without success. It is among `attempts`, too."""

    def attempts(self, cell: Cell, count: int, runs: Sequence[float], waits: Sequence[float]) -> None:
        """Attempts of one kind, queue and outcome, whose outcome is on record. One call at a time.

        Arguments:
            runs, waits: how long those that ran did so, and how long they had waited, in seconds, ascending. One below
                zero is of a clock that is behind another.
        """
