"""Observers: an engine's events, signals and middleware follow what happens to jobs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from penstock.ledger.queries.deaths import Death
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.wire.codec import Message

log = logging.getLogger("penstock.executor")


class Observer(Protocol):
    """Called on the executor's loop, so it must be quick. What it raises is logged and harms no job."""

    def received(self, message: Message) -> None: ...

    def refused(self, message: Message, reason: str) -> None:
        """The job is not run: it has ended already, was cancelled, is a duplicate, or a limit holds it back."""
        ...

    def started(self, claim: Claim) -> None: ...

    def ended(self, outcome: AttemptOutcome) -> None: ...


@runtime_checkable
class BurialObserver(Protocol):
    """An `Observer` that is also told of messages that never became a job here."""

    def buried(self, death: Death) -> None:
        """Its dead letter is on record."""
        ...


class Observers(list[Observer]):
    """All observers of a worker, notified one after the other."""

    def received(self, message: Message) -> None:
        self._notify(lambda observer: observer.received(message))

    def refused(self, message: Message, reason: str) -> None:
        self._notify(lambda observer: observer.refused(message, reason))

    def started(self, claim: Claim) -> None:
        self._notify(lambda observer: observer.started(claim))

    def ended(self, outcome: AttemptOutcome) -> None:
        self._notify(lambda observer: observer.ended(outcome))

    def buried(self, death: Death) -> None:
        self._notify(lambda observer: observer.buried(death) if isinstance(observer, BurialObserver) else None)

    def _notify(self, event: Callable[[Observer], None]) -> None:
        for observer in self:
            try:
                event(observer)
            except Exception:
                log.exception("%s failed", type(observer).__name__)
