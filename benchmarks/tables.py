"""Results: a table a line, with the medians, the spread and the ratios that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

BEST_PEER = "best peer"


@dataclass(frozen=True)
class Requirement:
    """`ours` against another row, or against the best of all peers.

    Attributes:
        ratio: the least that `ours / other` may be; where less is better, the most.
    """

    ours: str
    other: str
    ratio: float


@dataclass
class Table:
    """A line of the benchmark.

    Attributes:
        values: of each contestant, a value a round, in the order of the rounds.
        cpu: of some, processor microseconds a job; a busy machine changes them less than the rates.
        compared: pairs of rows whose ratio is printed, whatever it is.
        limits: the most that `values` themselves may be, by name; where more is better, the least.
    """

    title: str
    unit: str
    more_is_better: bool = True
    values: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    peers: list[str] = field(default_factory=list)
    requirements: list[Requirement] = field(default_factory=list)
    compared: list[tuple[str, str]] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, *, peer: bool, cpu: float | None = None) -> None:
        self.values.setdefault(name, []).append(value)
        if peer and name not in self.peers:
            self.peers.append(name)
        if cpu is not None:
            self.cpu.setdefault(name, []).append(cpu)

    @property
    def best_peer(self) -> str | None:
        pick = max if self.more_is_better else min
        return pick(self.peers, key=lambda name: median(self.values[name]), default=None)

    def ratio(self, ours: str, other: str) -> float | None:
        """The median over the rounds of `ours / other`."""
        name = self.best_peer if other == BEST_PEER else other
        own, theirs = self.values.get(ours), self.values.get(name or "")
        if not own or not theirs:
            return None
        return median(a / b for a, b in zip(own, theirs, strict=False))

    def verdicts(self) -> list[dict[str, Any]]:
        """For each requirement that could be measured: the wanted ratio, the measured one, and whether it is enough."""
        verdicts: list[dict[str, Any]] = []
        for requirement in self.requirements:
            if (ratio := self.ratio(requirement.ours, requirement.other)) is not None:
                met = ratio >= requirement.ratio if self.more_is_better else ratio <= requirement.ratio
                other = f"{self.best_peer}" if requirement.other == BEST_PEER else requirement.other
                verdicts.append(
                    {"ours": requirement.ours, "other": other, "wanted": requirement.ratio, "ratio": ratio, "met": met}
                )
        for name, limit in self.limits.items():
            if name in self.values:
                value = median(self.values[name])
                met = value >= limit if self.more_is_better else value <= limit
                verdicts.append({"ours": name, "other": "", "wanted": limit, "ratio": value, "met": met})
        return verdicts

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "medians": {name: median(values) for name, values in self.values.items()},
            "best_peer": self.best_peer,
            "verdicts": self.verdicts(),
        }

    def lines(self) -> list[str]:
        best = self.best_peer
        base = median(self.values[best]) if best else None
        order = sorted(self.values, key=lambda name: median(self.values[name]), reverse=self.more_is_better)
        rows = [("", self.unit, "spread", "of best peer", "CPU µs/job")]
        for name in order:
            values = self.values[name]
            spread = f"{_number(min(values))}–{_number(max(values))}" if len(values) > 1 else ""
            share = f"{median(values) / base:.2f}" if base else ""
            cpu = f"{median(self.cpu[name]):.0f}" if name in self.cpu else ""
            rows.append((name, _number(median(values)), spread, share, cpu))
        printed = [self.title, *_columns(rows)]
        sign = "≥" if self.more_is_better else "≤"
        for verdict in self.verdicts():
            mark = "ok    " if verdict["met"] else "MISSED"
            if verdict["other"]:
                text = f"{verdict['ours']} / {verdict['other']} = {verdict['ratio']:.3f}"
                text += f", wanted {sign} {verdict['wanted']}"
            else:
                text = f"{verdict['ours']} = {_number(verdict['ratio'])} {self.unit}"
                text += f", wanted {sign} {verdict['wanted']:g}"
            printed.append(f"  {mark} {text}")
        for ours, other in self.compared:
            if (ratio := self.ratio(ours, other)) is not None:
                printed.append(f"         {ours} / {other} = {ratio:.3f}")
        return printed + [f"  note: {note}" for note in self.notes]


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3f}"
