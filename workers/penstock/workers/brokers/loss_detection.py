"""Loss detection: jobs that a broker can no longer have. The dispatcher sends those again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol, cast

from penstock.config.errors import BrokerUnavailable
from penstock.producers.senders import scheme
from penstock.schemas.jobs.kind import Priority

Lane = tuple[str, str]
"""A queue and a priority."""

_NONE = timedelta()

# In one step, by the server's own clock. Entries are in the order of their ids, which begin with the time they were
# added; what a worker holds is among them until it is acknowledged.
_AGE_OF_OLDEST = """
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not oldest then return 0 end
local now, added = redis.call('TIME'), string.match(oldest[1], '^%d+')
return math.max(now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(added), 0)
"""


class LossDetector(Protocol):
    """Looks into a broker from outside. Connects when first used. Every call may raise BrokerUnavailable."""

    def data_since(self, now: Callable[[], datetime]) -> datetime | None:
        """Since when the broker has kept its data: all that was sent before is lost. None: it cannot tell.

        Arguments:
            now: reads the clock by which sendings are recorded.
        """
        ...

    def oldest(self, lanes: Sequence[Lane]) -> dict[Lane, timedelta | None]:
        """The greatest age of a job in each lane, waiting or in a worker's hands; zero for a lane that is empty.

        None: the broker does not tell.
        """
        ...

    def close(self) -> None: ...


def open_loss_detector(url: str, *, prefix: str = "penstock", timeout_seconds: float = 5.0) -> LossDetector:
    """The detector for a broker URL. Raises ConfigError where its scheme is unknown."""
    detector = RedisLossDetector if scheme(url) == "redis" else RabbitmqLossDetector
    return detector(url, prefix, timeout_seconds)


class RedisLossDetector:
    """`LossDetector` over Redis.

    A key, `{prefix}:incarnation`, holds the time at which it was found missing: a Redis that was wiped, or is another
    one, has none. A Redis that came back from an older snapshot has; its lanes then hold nothing newer than that.
    """

    def __init__(self, url: str, prefix: str, timeout_seconds: float) -> None:
        from penstock.producers.senders.redis.connections import RedisConnections

        self._connections = RedisConnections(url, timeout_seconds=timeout_seconds)
        self._prefix = prefix

    def data_since(self, now: Callable[[], datetime]) -> datetime | None:
        from penstock.producers.senders.redis.protocol import pack

        key = f"{self._prefix}:incarnation"
        [value] = self._connections.execute(pack("GET", key))
        if value is None:
            # The clock is read after the look, so that nothing sent before the wipe is later. If several dispatchers
            # look, one sets the key.
            [_, value] = self._connections.execute(pack("SET", key, now().isoformat(), "NX"), pack("GET", key))
        try:
            return datetime.fromisoformat(value.decode()).astimezone(UTC)
        except (AttributeError, ValueError):  # wiped once more in between, or not written by us
            return None

    def oldest(self, lanes: Sequence[Lane]) -> dict[Lane, timedelta | None]:
        from penstock.producers.senders.redis.protocol import pack
        from penstock.producers.senders.redis.sender import lane_key

        keys = [lane_key(self._prefix, queue, cast(Priority, priority)) for queue, priority in lanes]
        ages = self._connections.execute(*(pack("EVAL", _AGE_OF_OLDEST, 1, key) for key in keys)) if keys else []
        return {lane: timedelta(milliseconds=age) for lane, age in zip(lanes, ages, strict=True)}

    def close(self) -> None:
        self._connections.close()


class RabbitmqLossDetector:
    """`LossDetector` over RabbitMQ, which counts the messages that are ready and not those in workers' hands.

    So a lane without ready messages counts as empty. A job that a busy worker has fetched ahead and not started is then
    sent again, and an idle worker may run it; the claim refuses whichever comes second.
    """

    def __init__(self, url: str, prefix: str, timeout_seconds: float) -> None:
        self._url, self._prefix, self._timeout_seconds = url, prefix, timeout_seconds

    def data_since(self, now: Callable[[], datetime]) -> datetime | None:
        return None

    def oldest(self, lanes: Sequence[Lane]) -> dict[Lane, timedelta | None]:
        from penstock.producers.senders.rabbitmq.names import address, lane_name
        from penstock.producers.senders.rabbitmq.publisher import LOST, connect, count_lanes

        names = {lane: lane_name(self._prefix, lane[0], cast(Priority, lane[1])) for lane in lanes}
        try:
            # The connection is not kept: this runs seldom, and only if something seems to be missing.
            connection = connect(self._url, timeout_seconds=self._timeout_seconds)
            try:
                counts = count_lanes(connection, names.values())
            finally:
                connection.close()
        except LOST as error:
            raise BrokerUnavailable(f"RabbitMQ at {address(self._url)}: {error or type(error).__name__}") from error
        return {lane: None if (counts[name] or (0, 0))[0] else _NONE for lane, name in names.items()}

    def close(self) -> None:
        pass
