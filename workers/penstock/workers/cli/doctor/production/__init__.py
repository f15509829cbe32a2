"""The hardening list of docs/security.md, as far as a program can check it."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.config.settings import Settings
from penstock.workers.cli.doctor.production import gateway, keeping, machine, operators, servers, webhooks
from penstock.workers.telemetry.findings import Finding


def review(settings: Settings, here: machine.Machine, gateway_url: str | None = None) -> Iterator[Finding]:
    """Findings about everything, in the order of the page.

    Arguments:
        gateway_url: the gateway's public address, which is then asked; None: it is not.
    """
    yield from servers.review(settings, here.environment)
    yield from gateway.review(settings, gateway_url)
    yield from webhooks.review(settings)
    yield from operators.review(settings, here.environment)
    yield from machine.review(settings, here)
    yield from keeping.review(settings)
