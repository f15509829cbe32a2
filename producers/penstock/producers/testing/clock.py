"""Clock of a test: this machine's, ahead by what was travelled."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class Clock:
    """Time as the test sees it.

    Attributes:
        opened_at: when the test began, by this machine's clock.
        ahead: by how much the test's clock is ahead of this machine's.
        travelled_at: the last travel, by this machine's clock; None: there was none.
        reached: the last travel, else the beginning, by the test's clock.
    """

    def __init__(self) -> None:
        self.opened_at = self.reached = datetime.now(UTC)
        self.ahead = timedelta(0)
        self.travelled_at: datetime | None = None

    @property
    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def advance(self, by: timedelta) -> None:
        self.ahead += by
        self.travelled_at = datetime.now(UTC)
        self.reached = self.travelled_at + self.ahead

    def until(self, time: datetime) -> timedelta:
        """Time of the test's clock → how far away it is.

        Raises:
            ValueError: it is past, or has no time zone.
        """
        if time.tzinfo is None:
            raise ValueError(f"travel_to {time.isoformat()}: it has no time zone; give an aware datetime")
        if (by := time - self.now) <= timedelta(0):
            raise ValueError(f"travel_to {time.isoformat()}: the test's clock says {self.now.isoformat()} already")
        return by
