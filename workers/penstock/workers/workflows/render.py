"""A workflow as people see it: a tree in the terminal, or Mermaid."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from penstock.ledger.workflows.commands import Shown
from penstock.schemas.workflows import StepState

_MARKS = {
    StepState.PENDING: "·",
    StepState.RUNNING: "▶",
    StepState.WAITING: "◷",
    StepState.SUCCEEDED: "✔",
    StepState.SKIPPED: "–",
    StepState.DEAD: "✘",
    StepState.CANCELLED: "■",
    StepState.COMPENSATED: "↶",
}
_COLOURS = {
    StepState.RUNNING: "#cfe2ff",
    StepState.WAITING: "#fff3cd",
    StepState.SUCCEEDED: "#d1e7dd",
    StepState.DEAD: "#f8d7da",
    StepState.CANCELLED: "#e2e3e5",
    StepState.SKIPPED: "#f8f9fa",
    StepState.COMPENSATED: "#e2d9f3",
}


def tree(shown: Shown) -> list[str]:
    """A line for each step, below the last of those that it needs; the others it needs are named."""
    row = shown.row
    lines = [f"{row.kind} {row.id}  {row.state}  {took(row.started_at, row.finished_at or shown.now)}"]
    lines += [f"  {row.error}"] if row.error else []
    lines += _branches(shown, None, "")
    undoing = [name for name, one in shown.graph.items() if "undoes" in one and _has_begun(shown.steps[name])]
    if undoing:
        lines += ["", "compensations"]
        lines += [f"  {_line(shown, name, shown.steps[name])}" for name in undoing]
    return lines


def _branches(shown: Shown, parent: str | None, indent: str) -> Iterator[str]:
    steps = [name for name, one in shown.graph.items() if "undoes" not in one]
    order = {name: number for number, name in enumerate(steps)}
    below = [
        name for name in steps if max(shown.graph[name].get("needs", ()), key=order.__getitem__, default=None) == parent
    ]
    for name in below:
        last = name == below[-1]
        others = [one for one in shown.graph[name].get("needs", ()) if one != parent]
        after = f"  (and after {', '.join(others)})" if others else ""
        yield f"{indent}{'└─' if last else '├─'} {_line(shown, name, shown.steps[name])}{after}"
        yield from _branches(shown, name, indent + ("   " if last else "│  "))


def _line(shown: Shown, name: str, row: Any) -> str:
    makes = ", ".join(shown.graph[name]["makes"])
    parts = [f"{_MARKS[StepState(row.state)]} {name}", row.state]
    if row.members is not None:
        failed = f", {row.failed:,} not well" if row.failed else ""
        parts.append(f"{row.done:,} of {row.members:,} jobs{failed}")
    if row.started_at is not None:
        parts.append(took(row.started_at, row.finished_at or shown.now))
    if row.state == StepState.WAITING and row.due_at is not None:
        parts.append(f"until {row.due_at:%Y-%m-%d %H:%M:%SZ}")
    if row.error:
        parts.append(row.error)
    return f"{parts[0]} [{makes}]  {'  '.join(parts[1:])}"


def mermaid(shown: Shown) -> list[str]:
    """A flowchart, to be put into Markdown."""
    lines = ["flowchart TD"]
    for name, one in shown.graph.items():
        row = shown.steps[name]
        if "undoes" in one and not _has_begun(row):
            continue
        about = [name, row.state]
        if row.members is not None:
            about.append(f"{row.done:,} of {row.members:,}")
        if row.started_at is not None:
            about.append(took(row.started_at, row.finished_at or shown.now))
        opening, closing = ("[[", "]]") if one.get("fans_out") else ("[", "]")
        lines.append(f'    {name}{opening}"{"<br>".join(about)}"{closing}:::{row.state}')
        lines += [f"    {needed} --> {name}" for needed in one.get("needs", ()) if "undoes" not in one]
        if "undoes" in one:
            lines.append(f"    {one['undoes']} -. compensated by .-> {name}")
    states = {shown.steps[name].state for name in shown.graph}
    lines += [f"    classDef {state} fill:{colour}" for state, colour in _COLOURS.items() if state in states]
    return lines


def _has_begun(row: Any) -> bool:
    return bool(row.state != StepState.PENDING)


def took(start: datetime, end: datetime) -> str:
    """`0.25 s`, `12 s`, `3 m 4 s`, `2 h 3 m`, `3 d 4 h`."""
    span = max(end - start, timedelta())
    seconds = span.total_seconds()
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = int(seconds)
    for large, small, size in (("d", "h", 86_400), ("h", "m", 3600), ("m", "s", 60)):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // {'d': 3600, 'h': 60, 'm': 1}[large]} {small}"
    return f"{whole} s"
