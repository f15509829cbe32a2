"""Telling others of the ends of jobs: a `webhook.deliver` job for each, written with the outcome and sent after it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from pydantic_core import from_json

from penstock.config.errors import PayloadTooLarge
from penstock.config.sections.events import HookSettings
from penstock.config.settings import Settings
from penstock.ledger.transitions.outcome import Ending
from penstock.schemas.builtin.webhooks import DeliverWebhook
from penstock.schemas.states import FINAL
from penstock.schemas.wire.codec import Envelope, encode


class Hooks:
    """The hooks that have an address."""

    def __init__(self, settings: Settings) -> None:
        self._hooks = {name: hook for name, hook in settings.hooks.items() if hook.url is not None}
        self._max_bytes = settings.max_payload_bytes

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def after(self, ending: Ending) -> list[Envelope]:
        """What is to be delivered of this end; of the ends of deliveries nothing."""
        kind = ending.claim.message.kind.name
        if ending.state not in FINAL or kind == DeliverWebhook.kind().name:
            return []
        return [self._envelope(name, hook, ending) for name, hook in self._hooks.items() if _fits(hook, kind, ending)]

    def _envelope(self, name: str, hook: HookSettings, ending: Ending) -> Envelope:
        message = ending.claim.message
        data: dict[str, Any] = {
            "id": message.id,
            "kind": message.kind.name,
            "queue": message.queue,
            "state": str(ending.state),
            "attempt": ending.claim.attempt,
            "finished_at": ending.finished_at.isoformat(),
        }
        data |= {what: value for what in ("key", "tenant") if (value := getattr(message, what)) is not None}
        more: dict[str, Any] = {}
        if "result" in hook.include and ending.result is not None:
            more["result"] = from_json(ending.result)
        if "error" in hook.include and ending.error is not None:
            more["error"] = ending.error
        try:
            return self._encoded(name, ending, data | more)
        except PayloadTooLarge:
            return self._encoded(name, ending, data)  # the receiver asks for the rest

    def _encoded(self, name: str, ending: Ending, data: dict[str, Any]) -> Envelope:
        message = ending.claim.message
        job = DeliverWebhook(hook=name, type=f"job.{ending.state}", occurred_at=ending.finished_at, data=data)
        return encode(job, tenant=message.tenant, traceparent=message.traceparent, max_bytes=self._max_bytes)


def _fits(hook: HookSettings, kind: str, ending: Ending) -> bool:
    return str(ending.state) in hook.states and any(fnmatchcase(kind, pattern) for pattern in hook.kinds)
