"""Adopted jobs: the messages of another framework's tasks, as jobs of kinds that are made when its application is read.

They have the names of the tasks and their arguments, and what else the framework's own runner needs. Claims, leases,
retries, dead letters, limits, schedules and pages are the same for them as for any job.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from types import new_class
from typing import Any, Self, TypeVar

from pydantic import Field

from penstock.schemas.jobs.job import Job

A = TypeVar("A", bound="AdoptedJob")


class AdoptedJob(Job):
    """The base of adopted jobs; each framework has one of its own.

    Attributes:
        args: positional arguments, as JSON.
        kwargs: keyword arguments, as JSON.
        request: headers and options of the framework's message, as JSON.
    """

    args: list[Any] = Field(default_factory=list)
    kwargs: dict[str, Any] = Field(default_factory=dict)
    request: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def from_stock(cls, headers: Mapping[str, Any], body: bytes) -> Self:
        """Read a message that the framework's own client wrote.

        Arguments:
            headers: with `task`, the kind, and `id`.

        Raises:
            UndecodableMessage: it cannot be read; any other error counts as that, too.
        """
        raise NotImplementedError

    def time_limits(self) -> tuple[timedelta | None, timedelta | None]:
        """The hard and the soft limit of this message alone; None: that of its kind."""
        return None, None


def adopt_kind(base: type[A], name: str, source: str, **keywords: Any) -> type[A]:
    """Register the kind of an adopted task, and return its job class.

    Arguments:
        name: of the task.
        source: the module that defines the task, for messages.
        keywords: those of a job class, such as `queue` and `timeout`.

    Raises:
        KindError: the name or a keyword cannot be a kind's; DuplicateKind: a `Job`, or a task of another module, has
            the name.
    """

    def fill(namespace: dict[str, Any]) -> None:
        namespace.update(__module__=source, __qualname__=name)

    return new_class(name, (base,), {"kind": name, **keywords}, fill)
