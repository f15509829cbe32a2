"""`webhook.deliver`: a signed POST to a receiver, and the job's outcome for its answer."""

from __future__ import annotations

import time
from typing import Any

from pydantic_core import to_json

from penstock.config.sections.events import OutgoingWebhookSettings
from penstock.config.settings import Settings
from penstock.schemas.builtin.webhooks import DeliverWebhook, WebhookDelivered
from penstock.schemas.events.signatures import SIGNATURE, sign
from penstock.workers.builtin.missing import lack_of
from penstock.workers.builtin.webhooks.http_client import post
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import handles
from penstock.workers.handlers.returns import Discard, Permanent

GONE = 410


class DeliveryFailed(Exception):
    """The receiver did not answer with success. Has its `response`, for its `Retry-After`."""

    def __init__(self, response: Any) -> None:
        super().__init__(f"the receiver answered with status {response.status_code}")
        self.response = response


def missing_hook(job: DeliverWebhook, settings: Settings, tenant: str | None = None) -> str | None:
    """The lack of a worker whose settings do not have the job's receiver; None if they have."""
    return lack_of("hook", job.hook, settings.hooks, tenant)


@handles(DeliverWebhook, missing=missing_hook)
async def deliver(job: DeliverWebhook, ctx: Context, settings: Settings) -> WebhookDelivered | Discard:
    """Send an outgoing webhook. Any answer but success is retried, except 410: the receiver wants no more.

    Raises:
        Permanent: the receiver is not configured, is not for the job's tenant, has no address, or has one that is not
            allowed.
        NotTaken, OSError, httpx.HTTPError: worth another try.
    """
    receiver = settings.hooks.get(job.hook)
    if receiver is None:
        raise Permanent(missing_hook(job, settings, ctx.tenant))
    _check_tenant(job, ctx.tenant, receiver)
    if receiver.url is not None and job.url is not None:
        raise Permanent(f"hook {job.hook!r} has an address of its own; what is signed for it goes nowhere else")
    if (url := receiver.url or job.url) is None:
        raise Permanent(f"neither hook {job.hook!r} nor the job says where to")
    body = to_json({"type": job.type, "timestamp": job.occurred_at.isoformat(), "data": job.data})
    now = int(time.time())
    signatures = [sign(secret, ctx.job_id, now, body) for secret in receiver.secrets(job.hook)]
    headers = {
        **signatures[0],
        SIGNATURE: " ".join(signature[SIGNATURE] for signature in signatures),
        "content-type": "application/json",
    }
    response = await post(url, body, headers, allowed=receiver.allow_networks, timeout_seconds=receiver.timeout_seconds)
    if response.status_code == GONE:
        return Discard("the receiver wants no more of these (410)")
    if not response.is_success:
        raise DeliveryFailed(response)
    return WebhookDelivered(status=response.status_code)


def _check_tenant(job: DeliverWebhook, tenant: str | None, receiver: OutgoingWebhookSettings) -> None:
    """Refuse what a tenant could use to speak for others: the receiver trusts what is signed for it."""
    if not receiver.is_for(tenant):
        who = "jobs without a tenant" if tenant is None else f"tenant {tenant!r}"
        raise Permanent(f"hook {job.hook!r} is not for {who}; see `tenants` of [hooks.{job.hook}]")
    if tenant is not None and receiver.tenants is None and job.data.get("tenant") != tenant:
        raise Permanent(
            f"hook {job.hook!r} is for all tenants, so the data of a job of tenant {tenant!r} must have it as "
            f"`tenant`; or add `tenants` to [hooks.{job.hook}]"
        )
