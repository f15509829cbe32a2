"""The gateway: who may call it, how often, and from where."""

from __future__ import annotations

import math
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from urllib.parse import urlsplit

from penstock.config.errors import PenstockError
from penstock.config.settings import Settings
from penstock.ledger.members.api_keys import ApiKey
from penstock.workers.cli.doctor.production.servers import is_loopback
from penstock.workers.telemetry.findings import Finding, fail, ok, warn, weakness

LEAST_SECRET = 32
_YEAR_SECONDS = 365 * 24 * 3600
_TIMEOUT_SECONDS = 10.0


def review(settings: Settings, url: str | None) -> Iterator[Finding]:
    try:
        keys = _valid_keys(settings)
    except PenstockError as error:
        yield fail("gateway: keys", f"not checked: {error}", "let the ledger answer, and check again")
        keys = []
    else:
        yield _keys(keys)
    yield ok("gateway: authentication", f"always on: API keys{' and JWT' if settings.gateway.jwt else ''}")
    yield _jwks(settings)
    yield _origins(settings)
    yield _rate(settings)
    yield _token_secret(settings)
    if url is not None:
        yield from review_public_address(url)
    elif keys or settings.gateway.jwt is not None or settings.webhooks:
        advice = "penstock doctor --production --gateway-url https://…, where clients reach it"
        yield warn("gateway: TLS", "not checked: the gateway itself speaks plain HTTP, so a proxy must do TLS", advice)
    else:
        yield ok("gateway: TLS", "not in use: there are no keys, no JWT and no webhooks")


def _valid_keys(settings: Settings) -> list[ApiKey]:
    from penstock.ledger.members import api_keys
    from penstock.workers.cli.common.session import open_ledger

    now = datetime.now(UTC)
    with open_ledger(settings) as database:
        return [key for key in api_keys.every(database) if key.holds(now)]


def _keys(keys: Sequence[ApiKey]) -> Finding:
    check = "gateway: keys"
    if unbound := [key.name for key in keys if key.kinds is None]:
        advice = "replace them: penstock gateway keys add NAME --kind …, then keys revoke ID"
        return fail(check, f"without kinds, so for all of them: {', '.join(unbound)}", advice)
    if mighty := [key.name for key in keys if key.verbs is None]:
        advice = "replace them by ones with --verb send --verb read, or what each needs"
        return warn(check, f"without verbs, so for every act: {', '.join(mighty)}", advice)
    if endless := [key.name for key in keys if key.expires_at is None]:
        return warn(check, f"without an end: {', '.join(endless)}", "replace them by ones with --expires-in 90d")
    return ok(check, f"{len(keys)} valid, each for its kinds and verbs and with an end")


def _jwks(settings: Settings) -> Finding:
    check = "gateway: identity provider"
    if settings.gateway.jwt is None:
        return ok(check, "none")
    url = settings.gateway.jwt.jwks_url
    parts = urlsplit(url)
    if parts.scheme == "https" or is_loopback(parts.hostname or ""):
        return ok(check, url)
    advice = "set gateway.jwt.jwks_url to https://…"
    return fail(check, f"{url} is plain HTTP: who changes the answer makes tokens", advice)


def _origins(settings: Settings) -> Finding:
    check, origins = "gateway: CORS", settings.gateway.cors_origins
    if plain := [origin for origin in origins if urlsplit(origin).scheme != "https"]:
        return fail(check, f"plain HTTP: {', '.join(plain)}", "list https:// origins in gateway.cors_origins")
    return ok(check, f"pages of {', '.join(origins)}" if origins else "no pages of other origins")


def _rate(settings: Settings) -> Finding:
    check, rate = "gateway: rate limit", settings.gateway.requests_per_second
    if math.isinf(rate):
        return fail(check, "none for keys without a rate of their own", "set gateway.requests_per_second")
    return ok(check, f"{rate:g} requests a second of each caller")


def _token_secret(settings: Settings) -> Finding:
    check, secret = "token_secret", settings.token_secret
    advice = "set PENSTOCK_TOKEN_SECRET to the output of: openssl rand -hex 32"
    if secret is None:
        return warn(check, "each gateway makes its own when it starts: no token survives that, or fits another", advice)
    if (weak := weakness(secret, least=LEAST_SECRET)) is not None:
        return fail(check, f"it {weak}", advice)
    return ok(check, f"{len(secret)} characters")


def review_public_address(url: str) -> Iterator[Finding]:
    """Ask the gateway where its clients do: TLS, HSTS, and that `/metrics` stays inside."""
    base = url.rstrip("/")
    if urlsplit(base).scheme != "https":
        yield fail("gateway: TLS", f"{url} is plain HTTP: keys can be read on the way", "let the proxy do TLS")
        return
    try:
        headers = _get(f"{base}/live")[1]
        metrics = _get(f"{base}/metrics")[0]
    except (OSError, ssl.SSLError, ValueError) as error:
        yield fail("gateway: TLS", f"{url}: {error}", "let clients reach it with a valid certificate")
        return
    yield ok("gateway: TLS", f"{url} has a valid certificate")
    age = re.search(r"max-age=\"?(\d+)", headers.get("strict-transport-security", ""), re.IGNORECASE)
    if age is None or int(age[1][:12]) < _YEAR_SECONDS:
        advice = 'let the proxy send "Strict-Transport-Security: max-age=31536000; includeSubDomains"'
        yield warn("gateway: HSTS", "no Strict-Transport-Security for a year or longer", advice)
    else:
        yield ok("gateway: HSTS", headers["strict-transport-security"])
    if metrics == 200:
        yield warn("gateway: metrics", "everyone can read /metrics", "let the proxy answer it with 404")
    else:
        yield ok("gateway: metrics", f"/metrics answers {metrics}")


def _get(url: str) -> tuple[int, dict[str, str]]:
    """Status and headers, these with names in lower case. Raises OSError."""
    request = urllib.request.Request(url, headers={"User-Agent": "penstock-doctor"})  # noqa: S310  # https alone
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310
            return response.status, {name.lower(): value for name, value in response.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}
