"""Jobs of every promise, drawn from a seed, and the calls of a producer that enqueue them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos_jobs import (
    Chaotic,
    Charge,
    ChargeUnasked,
    Debounce,
    Existing,
    Least,
    LeastThread,
    LeastUntracked,
    Most,
    Once,
    OnceThread,
    Parent,
    Reject,
    Replace,
)
from chaos_site import Site
from support.polling import retry

from penstock.config.errors import BrokerUnavailable, DuplicateJob, LedgerUnavailable
from penstock.schemas.wire.ids import new_id

Mix = Sequence[tuple[type[Chaotic], int]]
"""Kinds, and how many of each among all."""
MIX: Mix = [
    (Least, 20),
    (LeastThread, 10),
    (LeastUntracked, 18),
    (Once, 8),
    (OnceThread, 8),
    (Parent, 4),
    (Most, 8),
    (Charge, 6),
    (ChargeUnasked, 4),
    (Reject, 4),
    (Existing, 4),
    (Replace, 3),
    (Debounce, 3),
]
UNIQUE = (Reject, Existing, Replace, Debounce)
CANCELLABLE = (Least, LeastUntracked, Once)
KEYS = 12
"""Keys of each unique kind: few, so that they are held more often than not."""


@dataclass
class Call:
    """A call of a producer, and its answer.

    Attributes:
        cancel: None; `at once` or `later`: its key is cancelled after it is sent.
        certain: it was cancelled before it was due.
        answered_id: id of the job that it was answered with, or refused for.
        created: a job of its own was entered.
        began, ended: of the call, as `time.time()`.
    """

    job: Chaotic
    id: str
    priority: str
    delay: float | None = None
    cancel: str | None = None
    certain: bool = False
    answered_id: str | None = None
    created: bool = True
    began: float = 0.0
    ended: float = 0.0

    @property
    def number(self) -> int:
        return self.job.number

    @property
    def key(self) -> str | None:
        return None if self.cancel is None else f"cancel-{self.number}"


def plan(seed: int, count: int, mix: Mix = MIX) -> list[Call]:
    """A seed always gives the same calls, but for ids."""
    chance = random.Random(seed)
    return [_draw(chance, number, mix) for number in range(count)]


def _draw(chance: random.Random, number: int, mix: Mix) -> Call:
    [kind] = chance.choices([kind for kind, _ in mix], [weight for _, weight in mix])
    failing = kind is not Most and chance.random() < 0.1
    job = kind(
        number=number,
        seconds=round(chance.choice([0.0, 0.0, 0.01, 0.05, 0.3]), 3),
        failures=chance.randint(1, 2) if failing else 0,
        about=chance.randrange(KEYS),
    )
    call = Call(job, new_id(), chance.choice(["high", "normal", "normal", "low"]))
    if kind is not Debounce and chance.random() < 0.12:
        call.delay = chance.uniform(0.1, 4.0)
    if kind in CANCELLABLE and chance.random() < 0.08:
        call.cancel = chance.choice(["at once", "later"])
        if kind is LeastUntracked or chance.random() < 0.7:
            call.delay = chance.uniform(5.0, 9.0)
    return call


@dataclass
class Asking:
    """A thread of the producer. Calls about the same waiting job are made by one thread, in order."""

    site: Site
    calls: list[Call]
    error: BaseException | None = None
    _later: list[tuple[float, Call]] = field(default_factory=list)

    @staticmethod
    def share(calls: Sequence[Call], threads: int) -> list[list[Call]]:
        shares: list[list[Call]] = [[] for _ in range(threads)]
        for call in calls:
            ordered = isinstance(call.job, (Replace, Debounce))
            shares[(call.job.about if ordered else call.number) % threads].append(call)
        return shares

    def run(self, due: Callable[[int], float], stopping: threading.Event | None = None) -> None:
        """Make the calls, until all are made or `stopping` is set.

        Arguments:
            due: number of a call → when it is made, as `time.monotonic()` says.
        """
        try:
            for call in self.calls:
                at = due(call.number)
                while (now := time.monotonic()) < at:
                    if stopping is not None and stopping.is_set():
                        break
                    self._cancel_due(now)
                    time.sleep(0.005)
                self._cancel_due(now)
                if stopping is not None and stopping.is_set():
                    break
                self.ask(call)
            self._cancel_due(float("inf"))
        except BaseException as error:
            self.error = error

    def ask(self, call: Call) -> None:
        options: dict[str, Any] = {"priority": call.priority, "id": call.id, "key": call.key, "delay": call.delay}
        call.began = time.time()
        try:
            # After an error the job may have arrived. Enqueued again with its id, it is absorbed by the ledger.
            handle = retry(
                lambda: self.site.producer.enqueue(call.job, **options),
                BrokerUnavailable,
                LedgerUnavailable,
                pause=0.05,
            )
            call.answered_id, call.created = handle.id, handle.created or handle.id == call.id
        except DuplicateJob as refused:
            call.answered_id, call.created = refused.existing_id, False
        call.ended = time.time()
        if call.cancel is not None:
            # A job cancelled later is in the ledger by then; one cancelled at once is on its way there.
            self._later.append((0.0 if call.cancel == "at once" else time.monotonic() + 1.5, call))

    def _cancel_due(self, now: float) -> None:
        due = [call for at, call in self._later if at <= now]
        self._later = [(at, call) for at, call in self._later if at > now]
        for call in due:
            key = call.key
            assert key is not None
            retry(lambda key=key: self.site.producer.cancel(key=key), LedgerUnavailable, pause=0.05)
            call.certain = call.delay is not None and time.time() < call.began + call.delay
