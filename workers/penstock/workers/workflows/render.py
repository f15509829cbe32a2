"""Renders a workflow as a tree for the terminal, or as Mermaid."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from penstock.ledger.workflows.commands import WorkflowDetails
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


def tree(workflow: WorkflowDetails) -> list[str]:
    """A line for each step, below the last of the steps that it needs; the other steps it needs are named."""
    row = workflow.row
    lines = [f"{row.kind} {row.id}  {row.state}  {took(row.started_at, row.finished_at or workflow.now)}"]
    lines += [f"  {row.error}"] if row.error else []
    lines += _branches(workflow, None, "")
    compensations = [
        name for name, step in workflow.graph.items() if "undoes" in step and _has_begun(workflow.steps[name])
    ]
    if compensations:
        lines += ["", "compensations"]
        lines += [f"  {_line(workflow, name, workflow.steps[name])}" for name in compensations]
    return lines


def _branches(workflow: WorkflowDetails, parent: str | None, indent: str) -> Iterator[str]:
    steps = [name for name, step in workflow.graph.items() if "undoes" not in step]
    order = {name: number for number, name in enumerate(steps)}
    below = [
        name
        for name in steps
        if max(workflow.graph[name].get("needs", ()), key=order.__getitem__, default=None) == parent
    ]
    for name in below:
        last = name == below[-1]
        others = [needed for needed in workflow.graph[name].get("needs", ()) if needed != parent]
        after = f"  (and after {', '.join(others)})" if others else ""
        yield f"{indent}{'└─' if last else '├─'} {_line(workflow, name, workflow.steps[name])}{after}"
        yield from _branches(workflow, name, indent + ("   " if last else "│  "))


def _line(workflow: WorkflowDetails, name: str, row: Any) -> str:
    makes = ", ".join(workflow.graph[name]["makes"])
    parts = [f"{_MARKS[StepState(row.state)]} {name}", row.state]
    if row.members is not None:
        failed = f", {row.failed:,} not well" if row.failed else ""
        parts.append(f"{row.done:,} of {row.members:,} jobs{failed}")
    if row.started_at is not None:
        parts.append(took(row.started_at, row.finished_at or workflow.now))
    if row.state == StepState.WAITING and row.due_at is not None:
        parts.append(f"until {row.due_at:%Y-%m-%d %H:%M:%SZ}")
    if row.error:
        parts.append(row.error)
    return f"{parts[0]} [{makes}]  {'  '.join(parts[1:])}"


def mermaid(workflow: WorkflowDetails) -> list[str]:
    """A flowchart in Mermaid, for Markdown."""
    lines = ["flowchart TD"]
    for name, step in workflow.graph.items():
        row = workflow.steps[name]
        if "undoes" in step and not _has_begun(row):
            continue
        label = [name, row.state]
        if row.members is not None:
            label.append(f"{row.done:,} of {row.members:,}")
        if row.started_at is not None:
            label.append(took(row.started_at, row.finished_at or workflow.now))
        opening, closing = ("[[", "]]") if step.get("fans_out") else ("[", "]")
        lines.append(f'    {name}{opening}"{"<br>".join(label)}"{closing}:::{row.state}')
        lines += [f"    {needed} --> {name}" for needed in step.get("needs", ()) if "undoes" not in step]
        if "undoes" in step:
            lines.append(f"    {step['undoes']} -. compensated by .-> {name}")
    states = {workflow.steps[name].state for name in workflow.graph}
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
