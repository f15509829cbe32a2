"""Rules: the limits of a job, and the value by which it shares each with other jobs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

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
        """Slot of a job under this rule: the name, and a hash of the job's value, which may be personal."""
        by = self.limit.by
        if by is None:
            return f"{self.name}:"
        values = message.job.model_dump(mode="json", include={by}) if by not in SHARES else {by: getattr(message, by)}
        return f"{self.name}:{share_of(values.get(by))}"

    @staticmethod
    def of_slot(slot: str) -> tuple[str, str]:
        """The name of the rule, and the hash of the share, empty for a rule without shares."""
        name, _, share = slot.rpartition(":")
        return name, share

    def admitting(self, most: int | None) -> Rule:
        """The rule with another number of jobs; None: as it is."""
        return self if most is None else replace(self, limit=replace(self.limit, most=most))

    @property
    def text(self) -> str:
        """`5 at a time by tenant`."""
        return str(self.limit) + (f" by {self.limit.by}" if self.limit.by else "")


def share_of(value: Any) -> str:
    """The hash by which a share is known, from the JSON value that its jobs have in common."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


class Rules:
    """The rules of each kind in each queue: those that the kind declares, then those of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._limits = settings.limits
        self._cached: dict[tuple[str, str], tuple[Rule, ...]] = {}

    def of(self, kind: Kind, queue: str) -> tuple[Rule, ...]:
        rules = self._cached.get((kind.name, queue))
        if rules is None:
            rules = self._cached[kind.name, queue] = tuple(self._rules(kind, queue))
        return rules

    def _rules(self, kind: Kind, queue: str) -> Iterable[Rule]:
        for limit in kind.limits:
            yield Rule(f"{kind.name}/{limit.label}", limit)
        names = {kind.name, *kind.aliases}
        for name, limits in sorted(self._limits.items()):
            if queue not in limits.queues and not names & set(limits.kinds):
                continue
            if limits.concurrency is not None:
                at_a_time = Concurrency(limits.concurrency, by=limits.by)
                yield Rule(f"{name}/{at_a_time.label}", at_a_time)
            if limits.rate is not None:
                rate = Rate(limits.rate, limits.per, limits.burst, by=limits.by)
                yield Rule(f"{name}/{rate.label}", rate)


def store_url(settings: Settings) -> str | None:
    """The Redis that limits are kept in; None: there is none.

    Raises:
        ConfigError: the URL has an unknown scheme.
    """
    url = settings.limits_url or settings.broker_url
    return url if scheme(url) == "redis" else None
