"""`Declaration`: a task as its framework knows it, before it is a typed job."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from penstock.schemas.jobs.limits import Rate
from penstock.schemas.jobs.retry_policy import RetryPolicy

TASK = "{task}"
"""The place of the imported task in the code of a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """A task, with what a job class and a handler say about it.

    Attributes:
        name: the task's, and the kind's.
        function: has its parameters, annotations and defaults. Of a method `self` is bound.
        call: code of the function, such as `{task}.fn`.
        task: module, attribute and name here of what `{task}` is; None: the code needs no import.
        doc: its docstring, if it has one.
        retry, timeout, soft_timeout, expires_in, priority, limits: keywords of the class; None or empty: left out.
        keeps_result: whether anyone reads what it returns.
        is_async: calling it makes a coroutine.
        before, after: lines of the handler around the call, where `ctx` is the context; `after` runs in any case.
        comments: what differs from the task under its own worker.
    """

    name: str
    queue: str
    function: Callable[..., Any]
    call: str
    task: tuple[str, str, str] | None = None
    doc: str | None = None
    retry: RetryPolicy | None = None
    timeout: timedelta | None = None
    soft_timeout: timedelta | None = None
    expires_in: timedelta | None = None
    priority: str | None = None
    limits: Sequence[Rate] = ()
    keeps_result: bool = True
    is_async: bool = False
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    comments: Sequence[str] = ()

    @property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.function)
