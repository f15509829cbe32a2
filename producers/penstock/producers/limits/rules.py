"""Which limits hold for a job, and which of its values it shares each with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from penstock.config.settings import Settings
from penstock.producers.senders import scheme
from penstock.schemas.jobs.kind import Kind
from penstock.schemas.jobs.limits import SHARES, Concurrency, Limit, Rate
from penstock.schemas.wire.codec import Message


@dataclass(frozen=True, slots=True)
class Rule:
    """A limit and its name: `KIND/concurrency`, or `NAME/rate-60s-by-tenant` of `[limits.NAME]`."""

    name: str
    limit: Limit

    def slot(self, message: Message) -> str:
        """What a job shares with others under this rule: the name, and a hash of its value, which may be personal."""
        by = self.limit.by
        if by is None:
            return f"{self.name}:"
        told = message.job.model_dump(mode="json", include={by}) if by not in SHARES else {by: getattr(message, by)}
        digest = hashlib.sha256(json.dumps(told.get(by), sort_keys=True).encode()).hexdigest()
        return f"{self.name}:{digest[:24]}"

    @staticmethod
    def of_slot(slot: str) -> tuple[str, str]:
        """The name of the rule, and the hash of the share, empty if there are no shares."""
        name, _, share = slot.rpartition(":")
        return name, share

    @property
    def text(self) -> str:
        """`5 at a time by tenant`."""
        return str(self.limit) + (f" by {self.limit.by}" if self.limit.by else "")


class Rules:
    """The rules of each kind in each queue; what settings say comes after what is declared beside the kind."""

    def __init__(self, settings: Settings) -> None:
        self._given = settings.limits
        self._found: dict[tuple[str, str], tuple[Rule, ...]] = {}

    def of(self, kind: Kind, queue: str) -> tuple[Rule, ...]:
        found = self._found.get((kind.name, queue))
        if found is None:
            found = self._found[kind.name, queue] = tuple(self._rules(kind, queue))
        return found

    def _rules(self, kind: Kind, queue: str) -> Iterable[Rule]:
        for limit in kind.limits:
            yield Rule(f"{kind.name}/{limit.label}", limit)
        names = {kind.name, *kind.aliases}
        for name, given in sorted(self._given.items()):
            if queue not in given.queues and not names & set(given.kinds):
                continue
            if given.concurrency is not None:
                at_a_time = Concurrency(given.concurrency, by=given.by)
                yield Rule(f"{name}/{at_a_time.label}", at_a_time)
            if given.rate is not None:
                rate = Rate(given.rate, given.per, given.burst, by=given.by)
                yield Rule(f"{name}/{rate.label}", rate)


def store_url(settings: Settings) -> str | None:
    """The Redis that limits are kept in; None: there is none.

    Raises:
        ConfigError: of a URL whose scheme nobody knows.
    """
    url = settings.limits_url or settings.broker_url
    return url if scheme(url) == "redis" else None
