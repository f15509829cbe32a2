"""The demo's mails, and checks that the server received them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from penstock.producers.enqueue.producer import Producer
from penstock.producers.handles.handles import JobHandle
from penstock.schemas.builtin.emails import SendEmail
from penstock.workers.local.demo.checks import expect
from penstock.workers.local.demo.world.mailbox import Mailbox

NAMES = ("Ada", "Grace", "Margaret", "Radia", "Barbara")
LATER, GONE = "later@example.com", "gone@example.com"
DELAY = timedelta(seconds=3)


def welcome(name: str, to: str) -> SendEmail:
    return SendEmail(to=(to,), template="welcome", variables={"name": name, "product": "the demo"})


@dataclass
class Mails:
    """The mails that the demo sends, and their checks."""

    mailbox: Mailbox
    addresses: list[str] = field(default_factory=lambda: [f"{name.lower()}@example.com" for name in NAMES])

    def send(self, producer: Producer) -> list[JobHandle]:
        return producer.enqueue_many(welcome(name, to) for name, to in zip(NAMES, self.addresses, strict=True))

    def check(self, results: Sequence[dict[str, Any]]) -> str:
        """Check that the mailbox has each of the mails once."""
        for name, address, result in zip(NAMES, self.addresses, results, strict=True):
            self._check(address, name, result)
        return f"{len(self.addresses)} mails received"

    def check_delayed(self, enqueued_at: datetime, results: Sequence[dict[str, Any]]) -> str:
        """Check that the delayed mail arrived, and not before its due time."""
        self._check(LATER, "Later", results[0])
        waited = self.mailbox.received(LATER)[0].received_at - enqueued_at
        expect(waited >= DELAY, f"the delayed mail came after {waited.total_seconds():.2f} s already")
        return f"received {waited.total_seconds():.1f} s after it was sent"

    def check_replayed(self, results: Sequence[dict[str, Any]]) -> str:
        self._check(GONE, "Gone", results[0])
        return "1 mail received"

    def _check(self, address: str, name: str, result: dict[str, Any]) -> None:
        mails = self.mailbox.received(address)
        expect(len(mails) == 1, f"the server got {len(mails)} mails for {address}")
        message = mails[0].message
        expect(message["Message-ID"] == result["message_id"], f"the mail for {address} is not that of its job")
        body = message.get_body(("plain",))
        text = body.get_content() if body is not None else ""
        expect(name in text and "the demo" in text, f"the mail for {address} does not greet {name}: {text[:80]!r}")
