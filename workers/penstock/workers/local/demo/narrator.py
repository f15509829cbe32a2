"""The demo's output: progress bars in a terminal, plain lines elsewhere, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the final table.

    Attributes:
        engine: the engine that ran the jobs; "" if there is none.
        seconds: from enqueueing to the end; None if it is not timed.
        problem: the failed check; None if all passed.
    """

    what: str
    engine: str
    count: str
    seconds: float | None
    where: str
    problem: str | None = None


class Narrator:
    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = 120
        self._started_at = time.monotonic()
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return time.monotonic() - self._started_at

    def title(self, text: str) -> None:
        self.console.print(f"\n[bold]{escape(text)}[/]")

    def line(self, text: str) -> None:
        # While bars are shown, rich prints above them.
        self.console.print(f"{self.seconds:5.1f} s  {text}", markup=False)

    @contextmanager
    def bars(self) -> Iterator[None]:
        """Bars for what `update` names, until the block ends; they stay as they then are."""
        columns = (
            TextColumn("         {task.description:<28}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
        )
        if not self.console.is_terminal:
            yield
            return
        with Progress(*columns, console=self.console) as self._progress:
            try:
                yield
            finally:
                self._progress.refresh()
        self._progress = None
        self._bars.clear()

    def update(self, name: str, done: int, total: int | None, note: str = "") -> None:
        if self._progress is None:
            return
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(escape(name), total=None, note="")
        self._progress.update(self._bars[name], completed=done, total=total, note=escape(note))

    def finished(self, row: Row) -> None:
        """Report a finished row."""
        mark = "ok    " if row.problem is None else "FAILED"
        took = "" if row.seconds is None else f"; {row.seconds:.1f} s"
        by = f" ({row.engine})" if row.engine else ""
        self.line(f"{mark}  {row.what}{by}: {row.problem or row.count}{took}")

    def table(self, rows: Sequence[Row]) -> None:
        table = Table(show_edge=False, pad_edge=False)
        for name in ("what", "engine", "how many", "seconds", "where to look", ""):
            table.add_column(name, justify="right" if name == "seconds" else "left", no_wrap=name in ("engine", ""))
        for row in rows:
            state = "[green]ok[/]" if row.problem is None else "[red]FAILED[/]"
            seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
            table.add_row(*(escape(cell) for cell in (row.what, row.engine, row.count, seconds, row.where)), state)
        self.console.print()
        self.console.print(table)
