"""Webhooks, incoming and outgoing: their secrets, and where outgoing ones may go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_network
from urllib.parse import urlsplit

from penstock.config.errors import ConfigError
from penstock.config.sections.events import OutgoingWebhookSettings, signing_key
from penstock.config.settings import Settings
from penstock.workers.telemetry.findings import Finding, fail, ok, weakness

LEAST_KEY_BYTES = 24
"""The least of Standard Webhooks."""
_NEVER = tuple(map(ip_network, ("127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10")))
"""Loopback and link-local addresses: this machine's own services, and clouds' metadata with their credentials."""
_WIDEST = {4: 8, 6: 32}
"""IP version → the shortest prefix that still names a network."""


def review(settings: Settings) -> Iterator[Finding]:
    for name, sender in settings.webhooks.items():
        yield _secrets(f"webhooks.{name}", sender.secrets, name, standard=sender.scheme == "standard")
    for name, receiver in settings.hooks.items():
        yield _secrets(f"hooks.{name}", receiver.secrets, name, standard=True)
        yield _target(name, receiver)


def _secrets(setting: str, read: Callable[[str], list[str]], name: str, *, standard: bool) -> Finding:
    check = f"secret of {setting}"
    try:
        secrets = read(name)
    except ConfigError as error:
        return fail(check, str(error), "set it; the others are not checked without it")
    advice = f"make one: echo whsec_$(openssl rand -base64 {LEAST_KEY_BYTES})"
    for secret in secrets:
        if standard:
            if (size := len(signing_key(secret))) < LEAST_KEY_BYTES:
                return fail(check, f"its key has {size} bytes, fewer than {LEAST_KEY_BYTES}", advice)
        elif (weak := weakness(secret, least=LEAST_KEY_BYTES)) is not None:
            return fail(check, f"it {weak}", "make one: openssl rand -hex 24")
    return ok(check, "long enough" if len(secrets) == 1 else f"{len(secrets)}, each long enough")


def _target(name: str, receiver: OutgoingWebhookSettings) -> Finding:
    check = f"target of hooks.{name}"
    for network in receiver.allow_networks:
        if network.prefixlen < _WIDEST[network.version]:
            return fail(check, f"allow_networks has {network}", "name the receiver's own network")
        if inside := [never for never in _NEVER if never.version == network.version and never.overlaps(network)]:
            advice = "leave it out: this machine's services and the cloud's metadata answer there"
            return fail(check, f"allow_networks has {network}, of {inside[0]}", advice)
    if receiver.url is not None and urlsplit(receiver.url).scheme != "https":
        return fail(check, f"{receiver.url} is plain HTTP", "use https://")
    networks = ", ".join(map(str, receiver.allow_networks))
    return ok(check, f"public addresses{f' and {networks}' if networks else ' only'}")
