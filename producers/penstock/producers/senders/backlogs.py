"""Backlogs of a broker's queues: how many jobs wait there, and for how long. Looking changes nothing."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol


class QueueBacklog(NamedTuple):
    """Jobs of a queue that wait in the broker: no consumer has fetched them.

    Attributes:
        jobs: how many, in all lanes.
        oldest_seconds: how long the one that waits longest is there, 0 if there are none; None: the broker does not
            tell.
    """

    jobs: int
    oldest_seconds: float | None


class QueueBacklogs(Protocol):
    """Reads the backlogs of a broker's queues. Connects when first used. For one thread.

    Attributes:
        added: as of the last reading, by queue, the jobs that it got since it exists, as the broker counts them,
            retries and moved ones too. It begins again where a queue is deleted or RabbitMQ restarts. Queues for which
            the broker does not tell are missing.
    """

    added: dict[str, int]

    def read(self, queues: Collection[str]) -> dict[str, QueueBacklog]:
        """Backlogs of these queues, and of others that the broker has under the prefix. Raises BrokerUnavailable."""
        ...

    def close(self) -> None: ...
