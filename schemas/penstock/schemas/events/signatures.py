"""Signatures of webhooks: Standard Webhooks, GitHub's and Stripe's. All are HMAC-SHA256.

https://www.standardwebhooks.com, https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries,
https://docs.stripe.com/webhooks#verify-manually
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping

from penstock.config.errors import WrongSignature
from penstock.config.sections.events import signing_key

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
"""The headers of Standard Webhooks."""

Headers = Mapping[str, str]
"""By their lower-case names."""


def header_text(value: str) -> str:
    """A header's text, whose bytes are read as UTF-8; servers read them as Latin-1.

    Raises:
        UnicodeDecodeError: they are not UTF-8.
    """
    try:
        raw = value.encode("latin-1")
    except UnicodeEncodeError:
        return value  # not from a server
    return raw.decode()


def sign(secret: str, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Sign a webhook: the headers of Standard Webhooks.

    Arguments:
        secret: base64, with or without `whsec_` before it.
        timestamp: in seconds since 1970.

    Raises:
        ValueError: the secret is not base64, or is empty.
    """
    signature = _standard(secret, id, str(timestamp), body)
    return {ID: id, TIMESTAMP: str(timestamp), SIGNATURE: f"v1,{base64.b64encode(signature).decode()}"}


def verify_standard(headers: Headers, body: bytes, secrets: Iterable[str], *, now: float, tolerance: float) -> str:
    """Verify a signature of Standard Webhooks. Returns the webhook's id.

    Raises:
        WrongSignature: it is not signed with one of the secrets, or its time is further from `now` than the tolerance.
    """
    timestamp = _header(headers, TIMESTAMP)
    try:
        id = header_text(_header(headers, ID))
    except UnicodeDecodeError:
        raise WrongSignature(f"the header {ID} is not UTF-8") from None
    parts = _header(headers, SIGNATURE).split()
    signatures = [_bytes(part.removeprefix("v1,")) for part in parts if part.startswith("v1,")]
    _check(signatures, [_standard(secret, id, timestamp, body) for secret in secrets])
    _check_time(timestamp, now, tolerance)
    return id


def verify_github(headers: Headers, body: bytes, secrets: Iterable[str]) -> None:
    """Verify `X-Hub-Signature-256`, which signs no time. Raises WrongSignature."""
    text = _header(headers, "x-hub-signature-256")
    signature = _hex(text.removeprefix("sha256=")) if text.startswith("sha256=") else b""
    _check([signature], [_hmac(secret.encode(), body) for secret in secrets])


def verify_stripe(headers: Headers, body: bytes, secrets: Iterable[str], *, now: float, tolerance: float) -> None:
    """Verify `Stripe-Signature: t=…,v1=…`, or with several `v1`. Raises WrongSignature, as `verify_standard`."""
    timestamp = stripe_time(headers)
    signatures = [_hex(value) for name, value in _stripe_parts(headers) if name == "v1"]
    signed = timestamp.encode() + b"." + body
    _check(signatures, [_hmac(secret.encode(), signed) for secret in secrets])
    _check_time(timestamp, now, tolerance)


def stripe_time(headers: Headers) -> str:
    """The time that Stripe signs; empty if there is none. Raises WrongSignature if the header is missing."""
    return next((value for name, value in _stripe_parts(headers) if name == "t"), "")


def verify_bearer(headers: Headers, secrets: Iterable[str]) -> None:
    """Verify `Authorization: Bearer …`, or the secret alone, as MinIO sends it. Raises WrongSignature."""
    text = _header(headers, "authorization")
    scheme, _, rest = text.partition(" ")
    token = rest.strip() if scheme.lower() == "bearer" else text
    # A secret that is not ASCII is sent as UTF-8 or as Latin-1; servers read both as Latin-1.
    _check([token.encode(), token.encode("latin-1", "replace")], [secret.encode() for secret in secrets])


def _stripe_parts(headers: Headers) -> list[tuple[str, str]]:
    parts = [part.strip().partition("=") for part in _header(headers, "stripe-signature").split(",")]
    return [(name, value) for name, _, value in parts]


def _standard(secret: str, id: str, timestamp: str, body: bytes) -> bytes:
    return _hmac(signing_key(secret), f"{id}.{timestamp}.".encode() + body)


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, hashlib.sha256)


def _check(signatures: Iterable[bytes], expected: list[bytes]) -> None:
    # All pairs are compared, so that the duration gives nothing away.
    if not any([hmac.compare_digest(signature, other) for signature in signatures for other in expected]):  # noqa: C419
        raise WrongSignature("the signature was not made with this secret")


def _check_time(text: str, now: float, tolerance: float) -> None:
    # Only digits are accepted: the exact text is signed.
    if not text.isascii() or not text.isdecimal() or len(text) > 12:
        raise WrongSignature("the time of the signature is not a number of seconds since 1970")
    if abs(now - int(text)) > tolerance:
        raise WrongSignature(f"the signature was made {abs(now - int(text)):.0f} s from now, over {tolerance:g} s")


def _header(headers: Headers, name: str) -> str:
    if not (value := headers.get(name, "")):
        raise WrongSignature(f"no header {name}")
    return value


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
