"""A job as it should be, and the world around it: for the model-based test of the ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import strategies as st

from penstock.config.errors import BrokerUnavailable
from penstock.ledger.transitions.claim import Claim
from penstock.schemas import State
from penstock.schemas.wire.codec import Envelope

F = TypeVar("F", bound=Callable[..., None])


class Crash(BaseException):
    """A process ends here."""


@dataclass(eq=False)
class Copy:
    """A message as the broker has it."""

    envelope: Envelope
    deliveries: int = 1
    holder: str | None = None

    @property
    def job_id(self) -> str:
        return self.envelope.id


@dataclass
class Broker:
    """A sender, into a list.

    Attributes:
        then: what happens to the next call.
        overtaken: called when it has the messages, before the sender knows.
    """

    copies: list[Copy] = field(default_factory=list)
    then: str = "sends"
    overtaken: Callable[[], None] = lambda: None

    def send(self, envelopes: Sequence[Envelope]) -> None:
        if self.then == "is down":
            raise BrokerUnavailable("down")
        if self.then == "crashes before":
            raise Crash
        self.copies += [Copy(envelope) for envelope in envelopes]
        if self.then == "crashes after":
            raise Crash
        self.overtaken()

    def ping(self) -> None: ...

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        return {}

    def close(self) -> None: ...


@dataclass
class Modelled:
    """A job as it should be. `state` None: the ledger does not know it.

    Attributes:
        due: of one that waits, whether its time has come.
        untouched: it was put off by a debounce, and no dispatcher has touched it since.
        unread: the row was made by a cancellation, and has no message.
        named: its row says which worker ran it last; it was not revived, or given up as lost, since then.
        missed: the broker has lost its message.
        gone: it was not on record when that happened, so it may be lost.
        sessions, charges: effects with `ctx.session`, and calls of `ctx.once("charge")`.
        effect: the row of that: None, `started` or `done`.
        revived: it may leave a final state now.
    """

    id: str
    kind: str
    delivery: str
    key: str | None
    enqueued: int
    state: State | None = None
    fence: int = 0
    failures: int = 0
    crashes: int = 0
    worker: str | None = None
    named: bool = False
    cancel_requested: bool = False
    due: bool = False
    untouched: bool = False
    unread: bool = False
    missed: bool = False
    gone: bool = False
    letter: bool = False
    sessions: int = 0
    successes: int = 0
    charges: int = 0
    effect: str | None = None
    revived: bool = False

    def end(self, state: State) -> None:
        self.state, self.due, self.worker, self.missed = state, False, None, False
        self.letter = self.letter or state == State.DEAD

    def wait(self, *, due: bool) -> None:
        self.state, self.due, self.worker, self.missed, self.untouched = State.SCHEDULED, due, None, False, False


@dataclass(eq=False)
class Held:
    """A claim, and what its holder has done with it. A worker that died holds it still: it may only sleep."""

    claim: Claim
    worker: str
    copy: Copy
    charge: str | None = None


class Act:
    """Something that may happen. `chosen` are strategies for its arguments."""

    def __init__(
        self, function: Callable[..., None], when: Callable[[Any], Any], chosen: dict[str, st.SearchStrategy[Any]]
    ) -> None:
        self.function, self.when, self.chosen = function, when, chosen

    def __repr__(self) -> str:
        return self.function.__name__


ACTS: list[Act] = []


def act(weight: int, when: Callable[[Any], Any] = lambda _: True, **chosen: st.SearchStrategy[Any]) -> Callable[[F], F]:
    """Like hypothesis's `rule` and `precondition`, with a weight. Of twenty rules of its own it leaves many out of each
    run, and few runs would have all that a fault takes."""

    def enter(function: F) -> F:
        ACTS.extend([Act(function, when, chosen)] * weight)
        return function

    return enter


def pick(choices: Sequence[Any], number: int) -> Any:
    """Any of the choices, for any number."""
    return choices[number % len(choices)]
