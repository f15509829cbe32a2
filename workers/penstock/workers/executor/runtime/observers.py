"""Observers: an engine's events, signals and middleware follow what happens to jobs."""

from __future__ import annotations

import logging
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
    """All observers of a worker, notified one after the other.

    Each method has its own loop: a shared one, with a function for each event, takes twice as long, three times a job.
    """

    def received(self, message: Message) -> None:
        for observer in self:
            try:
                observer.received(message)
            except Exception:
                _log_failure(observer)

    def refused(self, message: Message, reason: str) -> None:
        for observer in self:
            try:
                observer.refused(message, reason)
            except Exception:
                _log_failure(observer)

    def started(self, claim: Claim) -> None:
        for observer in self:
            try:
                observer.started(claim)
            except Exception:
                _log_failure(observer)

    def ended(self, outcome: AttemptOutcome) -> None:
        for observer in self:
            try:
                observer.ended(outcome)
            except Exception:
                _log_failure(observer)

    def buried(self, death: Death) -> None:
        for observer in self:
            try:
                if isinstance(observer, BurialObserver):
                    observer.buried(death)
            except Exception:
                _log_failure(observer)

    def lost(self, outcome: AttemptOutcome) -> None:
        """Another worker has taken the job over, and the outcome is dropped. For observers that have a `lost`."""
        for observer in self:
            try:
                getattr(observer, "lost", _ignore)(outcome)
            except Exception:
                _log_failure(observer)


def _ignore(outcome: AttemptOutcome) -> None: ...


def _log_failure(observer: Observer) -> None:
    log.exception("%s failed", type(observer).__name__)
