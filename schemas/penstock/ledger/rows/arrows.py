"""Arrows of the state machine: each module that changes a job's state declares its changes in `ARROWS`."""

from __future__ import annotations

from typing import NamedTuple

from penstock.schemas.states import State


class Arrow(NamedTuple):
    """A change of a job's state.

    Attributes:
        source, target: None: the job is not on record. The same state twice: the row changes under a higher fence.
        label: why the state changes.
    """

    source: State | None
    target: State | None
    label: str


def fan(sources: tuple[State | None, ...], targets: tuple[State | None, ...], label: str) -> tuple[Arrow, ...]:
    """An arrow from each source to each target."""
    return tuple(Arrow(source, target, label) for source in sources for target in targets)
