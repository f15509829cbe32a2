"""Errors that end an attempt."""

from __future__ import annotations

from datetime import timedelta

from penstock.workers.handlers.returns import JobCancelled, as_final


class TimedOut(Exception):
    """The attempt ran longer than its kind's `timeout`."""


class ChildFailed(Exception):
    """The handler failed in its child process, or the child died. Its text is safe for the ledger.

    Attributes:
        remote_traceback: the child's, of a handler that raised.
        raised: the type that the handler raised, if this process knows it too.
        wait: the wait that the error asked for.
        final: why the framework of an adopted task does not try it again; None: the policy says.
    """

    def __init__(
        self,
        text: str,
        remote_traceback: str | None = None,
        raised: type[BaseException] | None = None,
        wait: timedelta | None = None,
        final: str | None = None,
    ) -> None:
        super().__init__(text)
        self.remote_traceback, self.raised, self.wait = remote_traceback, raised, wait
        if final is not None:
            as_final(self, final)


class ChildDied(ChildFailed):
    """The child was killed, or ended by itself without an answer. Names the signal and its peak of memory."""


class ChildCrashed(ChildDied):
    """A child of the pool died: a crash of the one job that it ran."""


class NoChildProcess(ChildFailed):
    """The machine had no process or file descriptor left for a child."""


class ChildTerminated(ChildFailed, JobCancelled):
    """The child got a SIGTERM that its worker did not send: a shutdown's, if the worker drains, too."""


class Terminated(SystemExit):
    """Raised in the handler that a process of the pool runs when that gets a SIGTERM: it is to end, and clean up."""
