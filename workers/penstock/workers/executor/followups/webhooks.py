"""Outgoing webhooks for the ends of jobs: `webhook.deliver` jobs, written with the outcome and sent after it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from pydantic_core import from_json

from penstock.config.errors import PayloadTooLarge
from penstock.config.sections.events import OutgoingWebhookSettings
from penstock.config.settings import Settings
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.schemas.builtin.webhooks import DeliverWebhook
from penstock.schemas.states import FINAL
from penstock.schemas.wire.codec import Envelope, encode


class OutgoingWebhooks:
    """The configured webhooks that have an address."""

    def __init__(self, settings: Settings) -> None:
        self._hooks = {name: hook for name, hook in settings.hooks.items() if hook.url is not None}
        self._max_bytes = settings.max_payload_bytes
        self._own_kind = DeliverWebhook.kind().name

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def after(self, outcome: AttemptOutcome) -> list[Envelope]:
        """The deliveries for this outcome; none for the outcome of a delivery itself."""
        kind = outcome.claim.message.kind.name
        if outcome.state not in FINAL or kind == self._own_kind:
            return []
        return [
            self._envelope(name, hook, outcome) for name, hook in self._hooks.items() if _matches(hook, kind, outcome)
        ]

    def _envelope(self, name: str, hook: OutgoingWebhookSettings, outcome: AttemptOutcome) -> Envelope:
        message = outcome.claim.message
        data: dict[str, Any] = {
            "id": message.id,
            "kind": message.kind.name,
            "queue": message.queue,
            "state": str(outcome.state),
            "attempt": outcome.claim.attempt,
            "finished_at": outcome.finished_at.isoformat(),
        }
        data |= {name: value for name in ("key", "tenant") if (value := getattr(message, name)) is not None}
        more: dict[str, Any] = {}
        if "result" in hook.include and outcome.result is not None:
            more["result"] = from_json(outcome.result)
        if "error" in hook.include and outcome.error is not None:
            more["error"] = outcome.error
        try:
            return self._encoded(name, outcome, data | more)
        except PayloadTooLarge:
            return self._encoded(name, outcome, data)  # the receiver can ask for the rest

    def _encoded(self, name: str, outcome: AttemptOutcome, data: dict[str, Any]) -> Envelope:
        message = outcome.claim.message
        job = DeliverWebhook(hook=name, type=f"job.{outcome.state}", occurred_at=outcome.finished_at, data=data)
        return encode(job, tenant=message.tenant, traceparent=message.traceparent, max_bytes=self._max_bytes)


def _matches(hook: OutgoingWebhookSettings, kind: str, outcome: AttemptOutcome) -> bool:
    return (
        hook.is_for(outcome.claim.message.tenant)
        and str(outcome.state) in hook.states
        and any(fnmatchcase(kind, pattern) for pattern in hook.kinds)
    )
