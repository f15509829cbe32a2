"""Backlogs of the queues of a RabbitMQ."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from penstock.config.errors import BrokerUnavailable, ConfigError
from penstock.config.supervision import Outage
from penstock.producers.senders.backlogs import QueueBacklog
from penstock.producers.senders.rabbitmq.names import address, lane_name, lane_of
from penstock.producers.senders.rabbitmq.queues import list_lanes
from penstock.schemas.jobs.kind import PRIORITIES

log = logging.getLogger("penstock.metrics")

LOOK_AGAIN_SECONDS = 60.0
"""Pause before another look for a missing lane, and for a management API that did not answer."""
MOST_SAMPLES = 1000


class _Totals(NamedTuple):
    """Messages of a lane since it was made, or RabbitMQ was started."""

    delivered: int
    published: int


class RabbitmqBacklogs:
    """`QueueBacklogs` over RabbitMQ.

    Quorum queues do not report how old their messages are. The management API counts what was delivered, and a lane
    is first in, first out: whatever waited at an earlier reading is gone once as much was delivered as had entered by
    then. So an age is exact to a reading and to the 5 seconds in which RabbitMQ gathers its counters, and is counted
    from the first reading at the earliest. Without the management API the ages are unknown, and so are queues that
    are not asked for.
    """

    def __init__(self, url: str, prefix: str, timeout_seconds: float, management_url: str | None) -> None:
        self._url, self._prefix, self._timeout_seconds = url, prefix, timeout_seconds
        self._management_url = management_url
        self._outage = Outage()
        self._list_at = 0.0
        self._look_at: dict[str, float] = {}
        self._connection: Any = None
        self._ages: dict[str, LaneAge] = {}
        self.added: dict[str, int] = {}

    def read(self, queues: Collection[str]) -> dict[str, QueueBacklog]:
        totals = self._list()
        lanes = [lane for queue in queues for lane in self._lanes(queue)] if totals is None else totals
        counts = self._count(lanes)
        self._ages = {lane: age for lane, age in self._ages.items() if lane in counts and totals is not None}
        backlogs = dict.fromkeys(queues, QueueBacklog(0, 0.0))
        added: dict[str, int] = {}
        for lane, ready in counts.items():
            queue = lane_of(self._prefix, lane)[0]
            before = backlogs.get(queue, QueueBacklog(0, 0.0))
            oldest: float | None = None
            if totals is not None:
                age = self._ages.setdefault(lane, LaneAge()).update(time.monotonic(), ready, totals[lane].delivered)
                oldest = max(before.oldest_seconds or 0.0, age)
                added[queue] = added.get(queue, 0) + totals[lane].published
            elif not ready:
                oldest = before.oldest_seconds
            backlogs[queue] = QueueBacklog(before.jobs + ready, oldest)
        self.added = added
        return backlogs

    def close(self) -> None:
        if self._connection is not None:
            self._connection.collect()
            self._connection = None

    def _lanes(self, queue: str) -> Iterable[str]:
        try:
            return [lane_name(self._prefix, queue, priority) for priority in PRIORITIES]
        except ConfigError:  # RabbitMQ cannot have a queue of this name
            return ()

    def _list(self) -> Mapping[str, _Totals] | None:
        """Lane → its totals; None: the management API does not answer."""
        if time.monotonic() < self._list_at:
            return None
        try:
            columns = ("message_stats.deliver_get", "message_stats.publish")
            lanes = list_lanes(self._url, self._prefix, self._timeout_seconds, self._management_url, *columns)
        except BrokerUnavailable as error:
            self._list_at = time.monotonic() + LOOK_AGAIN_SECONDS
            if self._outage.is_new(error):
                log.warning("the ages of queues are not known: %s", error)
            return None
        self._outage.end()
        stats = {name: lane.get("message_stats") or {} for name, lane in lanes.items()}
        return {name: _Totals(int(of.get("deliver_get", 0)), int(of.get("publish", 0))) for name, of in stats.items()}

    def _count(self, lanes: Collection[str]) -> dict[str, int]:
        """Ready messages of the lanes that are there."""
        from penstock.producers.senders.rabbitmq.publisher import LOST, connect, count_lanes

        now = time.monotonic()
        self._look_at = {lane: at for lane, at in self._look_at.items() if at > now}
        names = [lane for lane in lanes if lane not in self._look_at]
        for reused in (self._connection is not None, False):
            try:
                if self._connection is None:
                    self._connection = connect(self._url, timeout_seconds=self._timeout_seconds)
                counts = count_lanes(self._connection, names)
                break
            except LOST as error:
                self.close()
                if not reused:
                    where = address(self._url)
                    raise BrokerUnavailable(f"RabbitMQ at {where}: {error or type(error).__name__}") from error
        self._look_at |= {lane: now + LOOK_AGAIN_SECONDS for lane, count in counts.items() if count is None}
        return {lane: count[0] for lane, count in counts.items() if count is not None}


class LaneAge:
    """How long the first message of a lane has been there, from the numbers of messages at several times."""

    def __init__(self) -> None:
        self._delivered = 0
        self._entered: deque[tuple[float, int]] = deque()
        """Times, and how many messages had entered the lane by then; only of those that wait."""

    def update(self, now: float, ready: int, delivered: int) -> float:
        """Add a reading. Returns the seconds that the message which waits longest has been there, as far as is known.

        Arguments:
            ready: messages that wait.
            delivered: messages that were handed out since the queue was made, or RabbitMQ was started.
        """
        entered = delivered + ready
        if ready == 0:
            self._entered.clear()
        elif delivered < self._delivered and self._entered:  # RabbitMQ counts again from 0
            self._entered = deque([(self._entered[0][0], entered)])
        self._delivered = delivered
        while self._entered and self._entered[0][1] <= delivered:
            self._entered.popleft()
        if ready and (not self._entered or entered > self._entered[-1][1]):
            self._entered.append((now, entered))
        if len(self._entered) > MOST_SAMPLES:
            self._entered = deque(list(self._entered)[::2])
        return now - self._entered[0][0] if self._entered else 0.0
