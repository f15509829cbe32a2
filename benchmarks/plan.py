"""A run of the benchmark: its servers, how many rounds, and what it prints while it goes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from benchmarks.entrants import Entrant
from benchmarks.session import BenchError, Servers

ROWS = 1_000_000


@dataclass
class Plan:
    """The servers and options of a run, for all lines.

    Attributes:
        scale: by how much to shorten each run.
        match: only contestants whose name contains one of these words, separated by commas; ours always.
        rows: the most jobs in the ledger of the lines `pages` and `growth-ledger`.
    """

    servers: Servers
    rounds: int = 5
    scale: float = 1.0
    match: str = ""
    rows: int = ROWS
    errors: list[str] = field(default_factory=list)

    def jobs(self, count: int, least: int = 200) -> int:
        return max(int(count * self.scale), least)

    def available(self, entrants: Iterable[Entrant]) -> list[Entrant]:
        """The contestants that are installed and whose ledger is reachable."""
        present = []
        for entrant in entrants:
            if entrant.environment.get("BENCH_LEDGER") == "PostgreSQL" and not self.servers.has_postgres:
                continue
            words = self.match.lower().split(",")
            if not entrant.is_ours and not any(word in entrant.name.lower() for word in words):
                continue
            if (entrant.bin / "python").exists():
                present.append(entrant)
        return present

    def rounds_of(self, entrants: Iterable[Entrant], measure: Callable[[Entrant], None]) -> None:
        """Every contestant in turn, round after round. One that fails is out, and named."""
        left = list(entrants)
        for number in range(self.rounds):
            for entrant in list(left):
                say(f"round {number + 1}/{self.rounds}: {entrant.name}")
                try:
                    measure(entrant)
                except BenchError as error:
                    self.errors.append(str(error))
                    say(str(error))
                    left.remove(entrant)


def say(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)
