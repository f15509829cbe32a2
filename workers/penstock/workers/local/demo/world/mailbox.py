"""The demo's mail server: it accepts mail on loopback, except for the addresses in `refused`."""

from __future__ import annotations

import email
import email.policy
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from penstock.workers.local.up.redis_server import free_port


@dataclass(frozen=True, slots=True)
class Mail:
    """A received mail and its recipients."""

    received_at: datetime
    recipients: tuple[str, ...]
    message: EmailMessage


class Mailbox:
    """An SMTP server in a thread.

    Arguments:
        folder: made; each mail is also written there, for people to look at.

    Attributes:
        refused: addresses that get a permanent refusal (550) while they are in this set.
    """

    def __init__(self, folder: Path) -> None:
        self.refused: set[str] = set()
        self.refusals = 0
        self._folder = folder
        self._mails: list[Mail] = []
        self._lock = threading.Lock()
        self._port = free_port()
        self._controller = Controller(self, hostname="127.0.0.1", port=self._port)

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._folder.mkdir()
        self._controller.start()

    def stop(self) -> None:
        self._controller.stop()

    def received(self, recipient: str) -> list[Mail]:
        """The mails that came for an address."""
        with self._lock:
            return [mail for mail in self._mails if recipient in mail.recipients]

    def __len__(self) -> int:
        with self._lock:
            return len(self._mails)

    # What aiosmtpd calls.

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            self.refusals += 1
            return f"550 5.1.1 <{address}>: no such mailbox here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content if isinstance(envelope.content, bytes) else str(envelope.content).encode()
        message = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        with self._lock:
            self._mails.append(Mail(datetime.now(UTC), tuple(envelope.rcpt_tos), message))
            (self._folder / f"{len(self._mails)}.eml").write_bytes(content)
        return "250 OK"
