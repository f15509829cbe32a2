"""Schedules as people see them: the declared and the recorded ones merged, and the state of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from penstock.ledger.schedules.previews import preview_times
from penstock.ledger.schedules.rules import Schedule, schedule_of_row


def merge(declared: Iterable[Schedule], rows: Mapping[str, Any]) -> dict[str, tuple[Schedule, Any]]:
    """Name → schedule and its row in the ledger, in the order of the names.

    Arguments:
        declared: the schedules of the configuration file and of the code.
        rows: the recorded ones by name: these fire. A schedule that no dispatcher has read yet has None.
    """
    merged: dict[str, tuple[Schedule, Any]] = {schedule.name: (schedule, None) for schedule in declared}
    for name, row in rows.items():
        # If both are the same, the declared one is kept: its error names file and line.
        same = name in merged and merged[name][0].rule == row.rule
        merged[name] = (merged[name][0] if same else schedule_of_row(row), row)
    return dict(sorted(merged.items()))


def error_of(schedule: Schedule, row: Any) -> str | None:
    """Why a schedule does not fire, or None."""
    if row is None:
        return schedule.error
    # A dispatcher that accepted the same rule may have imported a module that this process has not.
    accepted = row.rule == schedule.rule and row.error is None
    return None if accepted else schedule.error or row.error


def status_fields(schedule: Schedule, row: Any, error: str | None) -> dict[str, Any]:
    """State, source and times of a schedule.

    Arguments:
        error: why it does not fire, as the reader may see it.

    Returns:
        `source`, `state` (`wrong`, `unread`, `paused`, `active` or `over`), `next_at`, `last_at`, `last_job_id`,
        `waiting_at`, `paused_at`, `error`.
    """
    if row is None:
        next_at = None if schedule.times is None else schedule.times.next(datetime.now(UTC))
        names = ("last_at", "last_job_id", "waiting_at", "paused_at")
        fields = {"source": schedule.source, "state": "wrong" if error else "unread", "next_at": next_at}
        return fields | dict.fromkeys(names) | {"error": error}
    paused = row.paused_at is not None
    return {
        "source": row.source,
        "state": "wrong" if error else "paused" if paused else "active" if row.next_at else "over",
        "next_at": None if paused else row.next_at,
        "last_at": row.last_at,
        "last_job_id": row.last_job_id,
        "waiting_at": row.waiting_at,
        "paused_at": row.paused_at,
        "error": error,
    }


def next_times(schedule: Schedule, count: int) -> list[dict[str, Any]]:
    """The next times from now, as `preview_times` gives them; none for a schedule that is wrong."""
    if schedule.times is None or schedule.settings is None:
        return []
    return preview_times(schedule.times, schedule.settings.zone, datetime.now(UTC), count)
