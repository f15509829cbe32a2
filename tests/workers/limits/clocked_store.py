"""A store of limits whose clock the test sets."""

from __future__ import annotations

from datetime import timedelta

from penstock.producers.limits.rules import Rule
from penstock.producers.limits.store import (
    LimitStore,
    Slot,
    SlotRequest,
)
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.producers.senders.redis.protocol import pack
from penstock.schemas import Concurrency, Rate

LEASE = 60.0


LAW = "redis.call('TIME')"


class Clocked(LimitStore):
    """A store whose Redis goes by the clock of the test, in seconds."""

    def __init__(self, url: str, prefix: str) -> None:
        connections = RedisConnections(url, timeout_seconds=10)
        super().__init__(connections, prefix=prefix, lease=timedelta(seconds=LEASE), worker="w1")
        self.now = 0.0
        self.at(1_000_000.0)

    def at(self, now: float) -> None:
        self.now = now
        self._connections.execute(pack("SET", f"{self._base}:clock", round(now * 1e6)))

    def after(self, seconds: float) -> None:
        self.at(self.now + seconds)

    def open(self) -> None:
        """Advance past the time in which no job is let in."""
        self.renew([*RULES.values()], [])
        self.after(LEASE / 2)

    def _packed(self, script: str, *arguments: str | int) -> bytes:
        assert LAW in script
        return super()._packed(script.replace(LAW, "{0, redis.call('GET', base .. ':clock')}"), *arguments)


RULES = {
    "two": Rule("two", Concurrency(2)),
    "one": Rule("one", Concurrency(1)),
    "paced": Rule("paced", Rate(2, per=10, burst=2)),
}


TWO, ONE, PACED = ((rule, f"{name}:") for name, rule in RULES.items())


INTERVAL, TOLERANCE = 5.0, 5.0


def entry(job_id: str, *slots: Slot, fence: int = 1) -> SlotRequest:
    return SlotRequest(job_id, fence, slots)
