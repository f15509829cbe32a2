"""A look at jobs that wait in a broker. It changes nothing: none is taken out, counted as delivered or moved."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

from penstock.schemas.jobs.kind import Priority

End = Literal["newest", "oldest"]
"""Which jobs of each lane are looked at."""


class WaitingJob(NamedTuple):
    """A job that waits in the broker, and that no consumer has fetched.

    Attributes:
        id, kind: empty where a stranger sent something else.
        queue: where it runs; of a delayed job on its way to the dispatcher, that is not where it waits.
        waits_in: the queue in which it waits.
        added_at: when the broker got it, on the broker's clock.
        age_seconds: time since then.
    """

    id: str
    kind: str
    queue: str
    waits_in: str
    priority: Priority
    tenant: str | None
    key: str | None
    tags: tuple[str, ...]
    added_at: datetime
    age_seconds: float


class Peek(NamedTuple):
    """Result of a look.

    Attributes:
        jobs: the newest of all lanes first, or the oldest.
        complete: whether every waiting job was looked at.
    """

    jobs: list[WaitingJob]
    complete: bool


class Peeks(Protocol):
    """Looks at the waiting jobs of a broker. Connects when first used. Thread-safe."""

    def read(self, queues: Sequence[str], end: End, most: int) -> Peek:
        """Jobs of each lane of these queues, `most` of a lane. Raises BrokerUnavailable."""
        ...

    def close(self) -> None: ...
