"""Incoming webhooks, which become events: `POST /v1/webhooks/NAME`. They are authenticated by their signature."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from penstock.config.errors import InvalidEvent, WrongSignature
from penstock.config.settings import Settings
from penstock.producers.gateway.auth.callers import Caller
from penstock.producers.gateway.dependencies import Deps, Here
from penstock.producers.gateway.problems import Problem
from penstock.producers.gateway.routes.events import EventAnswer, EventsAnswer, accept_event, refused, respond
from penstock.schemas.events import webhooks
from penstock.schemas.events.cloudevents import Event

router = APIRouter(tags=["events"])


def check_secrets(settings: Settings) -> None:
    """Raises ConfigError: a webhook's secret is missing, or not as its scheme requires."""
    for name, webhook in settings.webhooks.items():
        webhook.secrets(name)


@router.post("/v1/webhooks/{name}", operation_id="sendWebhook", status_code=202, response_model=EventsAnswer)
async def send_webhook(name: Annotated[str, Path(max_length=64)], request: Request, deps: Here) -> Response:
    """Take a webhook of a sender that penstock.toml names. An event that comes again makes no further job, and the very
    same signed request is refused (409)."""
    if (settings := deps.settings.webhooks.get(name)) is None:
        raise Problem(404, "unknown-webhook", f"no webhook is named {name!r}; penstock.toml lists them")
    caller = Caller(
        f"webhook:{name}",
        f"webhook {name}",
        kinds=("*",),  # its rules say which
        tenants=None if settings.tenant is None else (settings.tenant,),
    )
    body = await request.body()
    try:
        events = webhooks.read_webhook(
            name,
            settings,
            settings.secrets(name),
            request.headers,
            body,
            now=time.time(),
            storage_url=deps.settings.storage_url,
        )
    except WrongSignature as error:
        deps.metrics.refused.labels("wrong-signature").inc()
        raise Problem(401, "wrong-signature", str(error)) from None
    except InvalidEvent as error:
        raise refused(error) from None
    deps.count(caller, max(len(events), 1))
    if (content := webhooks.signed_content(settings, request.headers, body)) is None:
        return respond([await accept_event(event, caller, deps) for event in events])
    return respond(await _take_once(content, events, caller, deps))


async def _take_once(message: str, events: Sequence[Event], caller: Caller, deps: Deps) -> list[EventAnswer]:
    """Raises Problem (409): this message was taken before, or is being taken. One that was not may come again."""
    keyed = await deps.idempotency_keys.start(caller.id, message, [b"message"], [])
    if keyed.answer is not None:
        deps.metrics.refused.labels("replayed").inc()
        raise Problem(409, "replayed", "this very message was taken already; nothing was done now")
    try:
        answers = [await accept_event(event, caller, deps) for event in events]
    except BaseException:
        await deps.idempotency_keys.release(keyed)  # the jobs made so far are on record under their events
        raise
    await deps.idempotency_keys.complete(keyed, 202, b"")
    return answers
