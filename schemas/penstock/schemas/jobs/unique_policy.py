"""Policies for a job whose key another job holds."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, get_args

from penstock.config.suggestions import did_you_mean, one_of
from penstock.schemas.jobs.durations import Duration, positive_duration
from penstock.schemas.states import FINAL, State

UniquePolicy = Literal["reject", "existing", "replace", "debounce"]

UNENDED = frozenset(State) - FINAL
REPLACEABLE = UNENDED - {State.RUNNING}
"""States in which `replace` and `debounce` end a job for a newer one. A running job goes on."""


@dataclass(frozen=True, slots=True)
class Unique:
    """A policy, checked.

    Attributes:
        policy: `reject` raises DuplicateJob, `existing` answers with the job that holds the key, `replace` cancels it
            if it waits, `debounce` does so too and puts the new one off by `quiet`.
        states: states in which a job holds its key.
        hold: how long a job holds its key, from when it was enqueued; None: as long as its state counts.
        quiet: period without another job of the key, after which the last one runs.
    """

    policy: UniquePolicy
    states: frozenset[State] = UNENDED
    hold: timedelta | None = None
    quiet: timedelta | None = None

    @classmethod
    def of(
        cls,
        policy: str | None,
        unique_for: Duration | None = None,
        unique_states: Sequence[str] | None = None,
        debounce: Duration | None = None,
    ) -> Unique | None:
        """Keywords of a job class → policy; None if they declare none.

        Raises:
            ValueError: the keywords do not go together; says which and why.
        """
        if policy is None:
            for name, value in (("unique_for", unique_for), ("unique_states", unique_states), ("debounce", debounce)):
                if value is not None:
                    raise ValueError(f'{name} needs a policy beside it, such as unique="reject"')
            return None
        one_of("unique", policy, get_args(UniquePolicy))
        if policy in ("replace", "debounce") and (unique_for is not None or unique_states is not None):
            raise ValueError(f"unique={policy!r} concerns waiting jobs; remove unique_for and unique_states")
        if policy == "debounce" and debounce is None:
            raise ValueError('unique="debounce" needs its quiet period, such as debounce=30')
        if policy != "debounce" and debounce is not None:
            raise ValueError(f'debounce goes with unique="debounce", not with unique={policy!r}')
        hold = positive_duration("unique_for", unique_for)
        # A job that failed or was stopped must not block its repetition. One that succeeded blocks it for the period.
        states = UNENDED if hold is None else UNENDED | {State.SUCCEEDED}
        if unique_states is not None:
            states = _states(unique_states)
        elif policy in ("replace", "debounce"):
            states = REPLACEABLE
        return cls(policy, states, hold, positive_duration("debounce", debounce))  # type: ignore[arg-type]


def _states(names: Sequence[str]) -> frozenset[State]:
    if isinstance(names, str):
        raise ValueError(f"unique_states must be a sequence of states, such as ({names!r},)")
    if not isinstance(names, Sequence | Set):
        raise ValueError(f"unique_states must be a sequence of states, not {names!r}")
    states = [str(state) for state in State]
    if unknown := [name for name in names if name not in states]:
        listed = ", ".join(map(str, unknown))
        raise ValueError(
            f"unique_states names {listed}; known are {', '.join(states)}{did_you_mean(unknown[0], states)}"
        )
    if not names:
        raise ValueError("unique_states must name at least one state")
    return frozenset(State(name) for name in names)
