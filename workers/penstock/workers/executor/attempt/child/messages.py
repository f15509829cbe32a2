"""Messages of a child to its worker, which checks each field of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from penstock.ledger.sql.text import LONGEST_ERROR, storable
from penstock.schemas.wire.codec import Envelope
from penstock.workers.handlers.returns import Discard, Resend, Retry, Snooze

A = TypeVar("A")

_Snooze = tuple[Literal["snooze"], timedelta, str | None]
_Discard = tuple[Literal["discard"], str]
_Retry = tuple[Literal["retry"], timedelta | None, str]
_Resend = tuple[Literal["resend"], Envelope, timedelta, bool, str, str | None]
_Once = (
    tuple[Literal["begin"], str, bool, datetime]
    | tuple[Literal["confirm"], str, str | None]
    | tuple[Literal["withdraw"], str]
)


class Checked(BaseModel):
    """A part of a message: no field may be missing, and none more be there."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Returned(Checked):
    """The answer of a handler that returned.

    Attributes:
        value: what it returned in place of a result; None: nothing, or the result that follows the message.
        outgoing: the jobs that it enqueued.
    """

    value: _Snooze | _Discard | _Retry | _Resend | None
    outgoing: list[Envelope]

    def control_flow(self) -> Snooze | Discard | Retry | Resend | None:
        match self.value:
            case ("snooze", delay, reason):
                return Snooze(delay, reason=reason)
            case ("discard", reason):
                return Discard(reason)
            case ("retry", after, reason):
                return Retry(after, reason=reason)
            case ("resend", envelope, after, failed, reason, traceback):
                return Resend(envelope, after, failed, reason, traceback)
        return None


class Raised(Checked):
    """The answer of a handler that raised.

    Attributes:
        bases: module and name of each base class of the error that decides about the retry, the nearest first.
        wait: the wait that it asked for.
        final: see `ChildFailed`.
    """

    error: str
    traceback: str | None
    bases: list[tuple[str, str]]
    wait: timedelta | None
    final: str | None


class FromChild(Checked, Generic[A]):
    """A message. One field of it counts.

    Attributes:
        log: the fields of a record.
        started: the handler starts now.
        progress: done, total and note.
        once: the method of `Records` that the child calls, and its arguments.
        answer: the last message of a child.
    """

    log: dict[str, str | int | float | bool | None] | None = None
    started: bool = False
    progress: tuple[int, int | None, str | None] | None = None
    once: _Once | None = None
    answer: A | None = None


def as_value(value: Snooze | Discard | Retry | Resend) -> Sequence[Any]:
    """The `value` of `Returned`."""
    match value:
        case Snooze():
            return "snooze", value.delay, storable(value.reason, LONGEST_ERROR)
        case Discard():
            return "discard", storable(str(value.reason), LONGEST_ERROR)
        case Retry():
            return "retry", value.after, storable(str(value.reason), LONGEST_ERROR)
        case Resend():
            return "resend", value.envelope, value.after, value.failed, value.reason, value.traceback
