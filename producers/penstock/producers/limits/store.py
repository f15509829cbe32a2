"""The counting of limits, in Redis: what each script of `scripts` is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from penstock.producers.limits import scripts
from penstock.producers.limits.rules import Rule
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.producers.senders.redis.protocol import pack
from penstock.schemas.jobs.limits import Concurrency

LEAD_SECONDS = 0.1
"""How much before its time a job is woken that a rate holds back: about as long as its way to a worker takes."""
PATIENCE_SECONDS = 2 * LEAD_SECONDS
"""How long one that was woken may wait for its time in a worker, since the way back through the ledger takes longer."""
_HOLD_SECONDS = 5.0
"""After which another dispatcher does what one has died over."""

_WOKEN = "w"
"""In place of a fence."""

Place = tuple[Rule, str]
"""A rule, and the slot that a job has under it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A job that asks to be let in.

    Attributes:
        member: the job and its fence: whoever comes too late takes nothing from a later attempt.
    """

    job_id: str
    fence: int
    places: tuple[Place, ...]

    @property
    def member(self) -> str:
        return f"{self.fence}/{self.job_id}"


@dataclass(frozen=True, slots=True)
class Entered:
    """It may run, after a wait of some milliseconds."""

    wait_seconds: float


@dataclass(frozen=True, slots=True)
class HeldBack:
    """It may not run now.

    Attributes:
        slot: what it has to wait for.
    """

    slot: str


@dataclass(frozen=True, slots=True)
class Free:
    """A slot that jobs wait for and that lets some in.

    Attributes:
        token: says to `wake` whether anything has changed in between.
    """

    slot: str
    count: int
    token: str


@dataclass(frozen=True, slots=True)
class Use:
    """What is known of a slot.

    Attributes:
        next: of a rate: how long until the next job would arrive if all came evenly spread.
        running: ids of jobs that run under it.
        woken: ids of those on their way to a worker.
    """

    next: timedelta
    running: tuple[str, ...]
    woken: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """A rule as workers tell it to those who know no kinds.

    Attributes:
        text: for people, such as `5 at a time by tenant`.
        most: at a time; 0: it is a rate, of a job each `interval` and, after a pause, of more that come `tolerance`
            too early.
    """

    text: str
    most: int
    interval: timedelta
    tolerance: timedelta

    @classmethod
    def of(cls, text: str, numbers: str) -> Told:
        most, interval, tolerance = map(int, numbers.split())
        return cls(text, most, timedelta(microseconds=interval), timedelta(microseconds=tolerance))


class LimitStore:
    """Thread-safe. Every call raises BrokerUnavailable if Redis is not there within the timeout.

    Arguments:
        lease: what runs and is not renewed for as long does not count any more.
        worker: who asks, where it runs jobs.
    """

    def __init__(self, url: str, *, prefix: str, lease: timedelta, timeout_seconds: float, worker: str = "") -> None:
        self._connections = RedisConnections(url, timeout_seconds=timeout_seconds)
        self._base = f"{prefix}:limits"
        self._lease = _micros(lease.total_seconds())
        self._worker = worker

    def enter(self, entries: Sequence[Entry]) -> list[Entered | HeldBack]:
        """Let each of these in by all of its rules, or hold it back by one; in the order of the entries."""
        fixed = (self._lease, _micros(PATIENCE_SECONDS), self._worker)
        packed = [
            self._packed(scripts.ENTER, _woken(one.job_id), one.member, *fixed, *_numbers(one.places))
            for one in entries
        ]
        replies = self._connections.execute(*packed)
        return [
            Entered(int(reply[1]) / 1e6) if reply[0] else HeldBack(one.places[int(reply[1])][1])
            for one, reply in zip(entries, replies, strict=True)
        ]

    def leave(self, ended: Iterable[Entry], waiting: Sequence[str] = ()) -> None:
        """Give back the places of what has ended; and say which slots are waited for, after that is on record."""
        left = [part for entry in ended for part in _members(entry)]
        self._connections.execute(self._packed(scripts.LEAVE, len(waiting), *waiting, *left))

    def renew(self, rules: Sequence[Rule], running: Iterable[Entry]) -> None:
        """Say what runs, and what the rules are."""
        named = [part for rule in rules for part in (rule.name, _rule(rule), rule.text)]
        members = [part for entry in running for part in _members(entry)]
        self._connections.execute(self._packed(scripts.RENEW, self._lease, self._worker, len(rules), *named, *members))

    def take(self, most: int) -> list[Free]:
        """Slots that jobs wait for and that have become free. For some seconds nobody else is told of them."""
        [found] = self._connections.execute(
            self._packed(scripts.TAKE, most, _micros(LEAD_SECONDS), _micros(_HOLD_SECONDS))
        )
        return [
            Free(slot.decode(), count, token.decode())
            for slot, count, token in zip(found[::3], found[1::3], found[2::3], strict=True)
        ]

    def wake(self, free: Free, job_ids: Sequence[str], *, more: bool) -> None:
        """Keep places for jobs that are about to be sent; `more`: others wait behind them."""
        self._connections.execute(
            self._packed(scripts.WAKE, free.slot, free.token, self._lease, int(more), *map(_woken, job_ids))
        )

    def expect(self, slots: Iterable[str]) -> None:
        """Say that jobs wait for these slots, where Redis does not know it."""
        packed = [pack("ZADD", f"{self._base}:wakes", "NX", 0, slot) for slot in slots]
        if packed:
            self._connections.execute(*packed)

    def look(self, slots: Sequence[str]) -> list[Use]:
        """What is known of these slots."""
        if not slots:
            return []
        [found] = self._connections.execute(self._packed(scripts.LOOK, *slots))
        return [_use(int(next_in), [member.decode() for member in members]) for next_in, members in found]

    def rules(self) -> dict[str, Told]:
        """Every rule that a worker has told of, by name."""
        numbers, texts = self._connections.execute(pack("HGETALL", self._base), pack("HGETALL", f"{self._base}:text"))
        said = dict(zip(texts[::2], texts[1::2], strict=True))
        return {
            name.decode(): Told.of(said.get(name, b"").decode(), rule.decode())
            for name, rule in zip(numbers[::2], numbers[1::2], strict=True)
        }

    def used(self) -> set[str]:
        """Every slot under which something runs or is about to."""
        start, cursor, found = f"{self._base}:held:", b"0", set[str]()
        while True:
            [(cursor, keys)] = self._connections.execute(pack("SCAN", cursor, "MATCH", f"{start}*", "COUNT", 1000))
            found |= {key.decode().removeprefix(start) for key in keys}
            if cursor == b"0":
                return found

    def close(self) -> None:
        self._connections.close()

    def _packed(self, script: str, *arguments: str | int) -> bytes:
        return pack("EVAL", script, 1, self._base, *arguments)


def _use(next_in: int, members: Sequence[str]) -> Use:
    parts = [member.partition("/") for member in members]
    running = tuple(job_id for fence, _, job_id in parts if fence != _WOKEN)
    woken = tuple(job_id for fence, _, job_id in parts if fence == _WOKEN)
    return Use(timedelta(microseconds=next_in), running, woken)


def _woken(job_id: str) -> str:
    return f"{_WOKEN}/{job_id}"


def _members(entry: Entry) -> Iterable[str]:
    for rule, slot in entry.places:
        if isinstance(rule.limit, Concurrency):
            yield slot
            yield entry.member


def _numbers(places: Iterable[Place]) -> Iterable[str]:
    for rule, slot in places:
        yield slot
        yield from _rule(rule).split()


def _rule(rule: Rule) -> str:
    limit = rule.limit
    if isinstance(limit, Concurrency):
        return f"{limit.most} 0 0"
    interval = limit.seconds / limit.most
    return f"0 {max(_micros(interval), 1)} {_micros(interval * (limit.burst - 1))}"


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
