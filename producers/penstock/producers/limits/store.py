"""The limit store: counts the slots of limits in Redis, through the scripts of `scripts`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType

from penstock.producers.limits import scripts
from penstock.producers.limits.rules import Rule
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.producers.senders.redis.protocol import pack
from penstock.schemas.jobs.limits import Concurrency

LEAD_SECONDS = 0.1
"""A job that a rate holds back is woken this long before its time: about as long as its way to a worker takes."""
PATIENCE_SECONDS = 2 * LEAD_SECONDS
"""Longest wait of a woken job in a worker; the way back through the ledger takes longer."""
_HOLD_SECONDS = 5.0
"""After this time, another dispatcher takes over slots whose dispatcher has died."""

_WOKEN = "w"
"""Prefix of a woken job's member, where a running job has its fence."""

Slot = tuple[Rule, str]
"""(rule, slot of a job under it)."""


@dataclass(frozen=True, slots=True)
class SlotRequest:
    """A job that asks for its slots.

    Attributes:
        member: the job and its fence, so that a late attempt does not release the slots of a later one.
    """

    job_id: str
    fence: int
    slots: tuple[Slot, ...]

    @property
    def member(self) -> str:
        return f"{self.fence}/{self.job_id}"


@dataclass(frozen=True, slots=True)
class SlotGrant:
    """A job may run, after a wait of some milliseconds."""

    wait_seconds: float


@dataclass(frozen=True, slots=True)
class SlotRefusal:
    """A job may not run now.

    Attributes:
        slot: the slot that the job has to wait for.
    """

    slot: str


@dataclass(frozen=True, slots=True)
class FreeSlot:
    """A slot that jobs wait for, and that admits some.

    Attributes:
        token: says to `wake` whether anything has changed in between.
    """

    slot: str
    count: int
    token: str


@dataclass(frozen=True, slots=True)
class SlotUse:
    """Current use of a slot.

    Attributes:
        next: of a rate: time until the next job would arrive if all came evenly spread.
        running: ids of jobs that run under the slot.
        woken: ids of jobs on their way to a worker.
    """

    next: timedelta
    running: tuple[str, ...]
    woken: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PublishedRule:
    """A rule as workers publish it to services that know no kinds.

    Attributes:
        text: for people, as declared, such as `5 at a time by tenant`.
        most: at a time; 0: it is a rate, of a job each `interval` and, after a pause, of more that come `tolerance`
            too early. Like those, as operators have set it.
        shares: numbers that operators have set for shares.
    """

    text: str
    most: int
    interval: timedelta
    tolerance: timedelta
    shares: Mapping[str, str]

    @classmethod
    def of(cls, text: str, numbers: str, shares: Mapping[str, str]) -> PublishedRule:
        most, interval, tolerance = map(int, numbers.split())
        return cls(text, most, timedelta(microseconds=interval), timedelta(microseconds=tolerance), shares)

    def of_share(self, share: str) -> PublishedRule:
        """The rule as it applies to a share."""
        numbers = self.shares.get(share)
        return self if numbers is None else PublishedRule.of(self.text, numbers, self.shares)

    @property
    def by(self) -> str | None:
        """The value by which jobs share the limit; None: all share it."""
        return self.text.rpartition(" by ")[2] if " by " in self.text else None


class LimitStore:
    """Thread-safe. Every call raises BrokerUnavailable if Redis is not there within the timeout.

    Arguments:
        lease: a running job that is not renewed for this long no longer counts.
        worker: name of the worker that asks, if it runs jobs.
    """

    def __init__(self, connections: RedisConnections, *, prefix: str, lease: timedelta, worker: str = "") -> None:
        self._connections = connections
        self._base = f"{prefix}:limits"
        self._lease = _micros(lease.total_seconds())
        self._worker = worker

    def acquire(self, requests: Sequence[SlotRequest]) -> list[SlotGrant | SlotRefusal]:
        """Grant each request all of its slots, or none; in the order of the requests."""
        fixed = (self._lease, _micros(PATIENCE_SECONDS), self._worker)
        packed = [
            self._packed(scripts.ENTER, _woken(request.job_id), request.member, *fixed, *_numbers(request.slots))
            for request in requests
        ]
        replies = self._connections.execute(*packed)
        return [
            SlotGrant(int(reply[1]) / 1e6) if reply[0] else SlotRefusal(request.slots[int(reply[1])][1])
            for request, reply in zip(requests, replies, strict=True)
        ]

    def release(self, ended: Iterable[SlotRequest], waiting: Sequence[str] = ()) -> None:
        """Release the slots of ended jobs; mark the slots that jobs wait for, once that is on record."""
        left = [part for entry in ended for part in _members(entry)]
        self._connections.execute(self._packed(scripts.LEAVE, len(waiting), *waiting, *left))

    def renew(
        self,
        rules: Sequence[Rule],
        running: Iterable[SlotRequest],
        changes: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Publish the rules, and renew the slots of running jobs.

        Arguments:
            changes: numbers that operators have set, by the name of the limit or the slot of a share.
        """
        published = [part for rule in rules for part in _published(rule, changes)]
        members = [part for entry in running for part in _members(entry)]
        self._connections.execute(
            self._packed(scripts.RENEW, self._lease, self._worker, len(rules), *published, *members)
        )

    def take_free(self, most: int) -> list[FreeSlot]:
        """Slots that jobs wait for and that have become free. No other dispatcher gets them for some seconds."""
        [reply] = self._connections.execute(
            self._packed(scripts.TAKE, most, _micros(LEAD_SECONDS), _micros(_HOLD_SECONDS))
        )
        return [
            FreeSlot(slot.decode(), count, token.decode())
            for slot, count, token in zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        ]

    def wake(self, free: FreeSlot, job_ids: Sequence[str], *, more: bool) -> None:
        """Reserve slots for jobs that are about to be sent; `more`: others wait behind them."""
        self._connections.execute(
            self._packed(scripts.WAKE, free.slot, free.token, self._lease, int(more), *map(_woken, job_ids))
        )

    def mark_wanted(self, slots: Iterable[str]) -> None:
        """Mark that jobs wait for these slots, where Redis does not know it."""
        if names := tuple(slots):
            self._connections.execute(self._packed(scripts.WANT, *names))

    def uses(self, slots: Sequence[str]) -> list[SlotUse]:
        """Current use of each slot."""
        if not slots:
            return []
        [reply] = self._connections.execute(self._packed(scripts.LOOK, *slots))
        return [_use(int(next_in), [member.decode() for member in members]) for next_in, members in reply]

    def rules(self) -> dict[str, PublishedRule]:
        """Every rule that a worker has published, by name."""
        keys = (self._base, f"{self._base}:text", f"{self._base}:shares")
        replies = self._connections.execute(*(pack("HGETALL", key) for key in keys))
        numbers, texts, shares = (dict(zip(reply[::2], reply[1::2], strict=True)) for reply in replies)
        return {
            name.decode(): PublishedRule.of(
                texts.get(name, b"").decode(), rule.decode(), json.loads(shares.get(name, b"{}"))
            )
            for name, rule in numbers.items()
        }

    def used_slots(self) -> set[str]:
        """Every slot under which a job runs or is about to."""
        start, cursor, slots = f"{self._base}:held:", b"0", set[str]()
        while True:
            [(cursor, keys)] = self._connections.execute(pack("SCAN", cursor, "MATCH", f"{start}*", "COUNT", 1000))
            slots |= {key.decode().removeprefix(start) for key in keys}
            if cursor == b"0":
                return slots

    def close(self) -> None:
        self._connections.close()

    def _packed(self, script: str, *arguments: str | int) -> bytes:
        return pack("EVAL", script, 1, self._base, *arguments)


def _use(next_in: int, members: Sequence[str]) -> SlotUse:
    parts = [member.partition("/") for member in members]
    running = tuple(job_id for fence, _, job_id in parts if fence != _WOKEN)
    woken = tuple(job_id for fence, _, job_id in parts if fence == _WOKEN)
    return SlotUse(timedelta(microseconds=next_in), running, woken)


def _woken(job_id: str) -> str:
    return f"{_WOKEN}/{job_id}"


def _members(entry: SlotRequest) -> Iterable[str]:
    for rule, slot in entry.slots:
        if isinstance(rule.limit, Concurrency):
            yield slot
            yield entry.member


def _numbers(slots: Iterable[Slot]) -> Iterable[str]:
    for rule, slot in slots:
        yield slot
        yield from _rule(rule).split()


def _published(rule: Rule, changes: Mapping[str, int]) -> Iterable[str]:
    """Name, numbers, text and the numbers of shares, in JSON that is the same for the same numbers."""
    shares = {
        share: _rule(rule.admitting(most))
        for name, share, most in sorted((*Rule.of_slot(slot), most) for slot, most in changes.items())
        if name == rule.name
    }
    return rule.name, _rule(rule.admitting(changes.get(rule.name))), rule.text, json.dumps(shares)


def _rule(rule: Rule) -> str:
    limit = rule.limit
    if isinstance(limit, Concurrency):
        return f"{limit.most} 0 0"
    interval = limit.seconds / limit.most
    return f"0 {max(_micros(interval), 1)} {_micros(interval * (limit.burst - 1))}"


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
