"""`Mailer`: the contract of all ways to hand over a mail, and its errors."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from penstock.config.errors import PenstockError
from penstock.workers.builtin.emails.flattened import Mail

Build = Callable[[], Mail]


class MailRefused(PenstockError):
    """The server refused the mail or every recipient for good (5xx)."""


class MailUnavailable(PenstockError):
    """The server cannot be reached, put the mail off (4xx), has a limit of its own, or does not let us in.

    Trying again may help.

    Attributes:
        after: the shortest wait that makes sense; None: as the kind's policy says.
    """

    def __init__(self, message: str, *, after: timedelta | None = None) -> None:
        super().__init__(message)
        self.after = after


@dataclass(frozen=True, slots=True)
class Delivered:
    """Delivery of a mail that at least one recipient got.

    Attributes:
        refused: recipients the server did not take, with its reply: code and text.
        already: an earlier attempt had delivered it.
    """

    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    already: bool = False


class Mailer(ABC):
    """Safe to use from several threads. Builds at most `connections` mails at a time: the others wait."""

    def __init__(self, connections: int) -> None:
        self._slots = threading.BoundedSemaphore(connections)

    def deliver(self, build: Build, sender: str, recipients: Sequence[str]) -> Delivered:
        """Hand over one mail.

        Arguments:
            build: makes the mail; called once a connection is free.
            sender, recipients: bare addresses `a@b`.

        Raises:
            MailRefused, MailUnavailable: no recipient got it, or (after a lost connection) that is not known.
            Any error of `build`, and of reading attachments.
        """
        with self._slots:
            return self._deliver(build, sender, recipients)

    @abstractmethod
    def _deliver(self, build: Build, sender: str, recipients: Sequence[str]) -> Delivered: ...

    @abstractmethod
    def check(self) -> str:
        """Say hello to the server without sending a mail, and return a line about it.

        Raises:
            MailUnavailable: it cannot be reached, or does not let us in.
        """

    def close(self) -> None:  # noqa: B027  # nothing to close is fine
        """Close the connections."""
