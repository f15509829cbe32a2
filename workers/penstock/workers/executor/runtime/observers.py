"""Observers: an engine's events, signals and middleware follow what happens to jobs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from penstock.config.supervision import faults
from penstock.ledger.queries.deaths import Death
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.wire.codec import Message

log = logging.getLogger("penstock.executor")


class Observer:
    """Called on the executor's loop, so it must be quick. An exception that it raises is logged and harms no job.

    Override the methods of the events that matter: the others cost nothing.
    """

    def received(self, message: Message) -> None: ...

    def refused(self, message: Message, reason: str) -> None:
        """The job is not run: it has ended already, was cancelled, is a duplicate, or a limit holds it back."""

    def started(self, claim: Claim) -> None: ...

    def ended(self, outcome: AttemptOutcome) -> None: ...

    def lost(self, outcome: AttemptOutcome) -> None:
        """Another worker has taken the job over, and the outcome is dropped."""

    def buried(self, death: Death) -> None:
        """A message that never became a job here: its dead letter is on record."""


class Observers:
    """All observers of a worker, notified one after the other, and only of events that they override."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = list(observers)
        self._bind()

    def append(self, observer: Observer) -> None:
        """Notify this one, too. Call it before the worker starts."""
        self._observers.append(observer)
        self._bind()

    def __iter__(self) -> Iterator[Observer]:
        return iter(self._observers)

    def _bind(self) -> None:
        self._received = self._methods("received")
        self._refused = self._methods("refused")
        self._started = self._methods("started")
        self._ended = self._methods("ended")
        self._lost = self._methods("lost")
        self._buried = self._methods("buried")

    def _methods(self, event: str) -> tuple[Callable[..., Any], ...]:
        methods = [getattr(observer, event) for observer in self._observers]
        return tuple(method for method in methods if getattr(method, "__func__", None) is not getattr(Observer, event))

    # Each has its own loop: a shared one, with a tuple of arguments, takes twice as long, three times a job.

    def received(self, message: Message) -> None:
        for notify in self._received:
            try:
                notify(message)
            except Exception:
                _failed("received", notify)

    def refused(self, message: Message, reason: str) -> None:
        for notify in self._refused:
            try:
                notify(message, reason)
            except Exception:
                _failed("refused", notify)

    def started(self, claim: Claim) -> None:
        for notify in self._started:
            try:
                notify(claim)
            except Exception:
                _failed("started", notify)

    def ended(self, outcome: AttemptOutcome) -> None:
        for notify in self._ended:
            try:
                notify(outcome)
            except Exception:
                _failed("ended", notify)

    def lost(self, outcome: AttemptOutcome) -> None:
        for notify in self._lost:
            try:
                notify(outcome)
            except Exception:
                _failed("lost", notify)

    def buried(self, death: Death) -> None:
        for notify in self._buried:
            try:
                notify(death)
            except Exception:
                _failed("buried", notify)


def _failed(event: str, notify: Callable[..., Any]) -> None:
    faults["observer failed"] += 1
    log.exception("%s.%s failed", type(getattr(notify, "__self__", notify)).__name__, event)
