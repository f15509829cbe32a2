"""Tokens that let a browser follow one job for a while, without a key or a session of its own.

A backend makes a token for a page it serves; its holder may read this job's state and progress, and nothing else, until
it expires. It is signed, not encrypted, and cannot be revoked sooner.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from datetime import timedelta

from penstock.config.errors import ConfigError, InvalidToken

__all__ = ["check_secret", "progress_token", "read_progress_token"]

LEAST_SECRET_BYTES = 16
_LONGEST = 1024
_PURPOSE = b"penstock.progress.v1:"
"""Signed with each token, so that nothing else that is signed with the same secret passes for one."""


def check_secret(secret: object) -> str:
    """The secret, if it can sign tokens.

    Raises:
        ConfigError: it is not text, or is shorter than 16 bytes.
    """
    if not isinstance(secret, str):
        raise ConfigError(f"the secret of progress tokens is {secret.__class__.__name__}; give text")
    if (size := len(secret.encode())) < LEAST_SECRET_BYTES:
        raise ConfigError(f"the secret of progress tokens has {size} bytes; give at least {LEAST_SECRET_BYTES}")
    return secret


def progress_token(job_id: str, *, secret: str, expires_in: timedelta = timedelta(hours=1)) -> str:
    """A token to follow one job, of characters that need no quoting in a URL.

    Arguments:
        secret: at least 16 bytes that only the backend and the gateway know.

    Raises:
        ConfigError: the secret is too short.
        ValueError: it would have expired already.
    """
    if expires_in <= timedelta():
        raise ValueError(f"expires_in must be positive, not {expires_in}")
    body = _encode(json.dumps([job_id, int(time.time() + expires_in.total_seconds())]).encode())
    return f"{body}.{_signature(body, secret)}"


def read_progress_token(token: str, *, secret: str) -> str:
    """The id of the job that a token is for.

    Raises:
        InvalidToken: the token is not signed with this secret, or has expired.
        ConfigError: the secret is too short.
    """
    job_id, _expires_at = read_token(token, secret=secret)
    return job_id


def read_token(token: str, *, secret: str) -> tuple[str, float]:
    """The id of the job that a token is for, and when the token expires, in seconds since the epoch.

    Raises:
        InvalidToken, ConfigError: see `read_progress_token`.
    """
    body, _, signature = token[:_LONGEST].partition(".")
    if not hmac.compare_digest(_signature(body, secret).encode(), signature.encode("utf-8", "replace")):
        raise InvalidToken("the token is not one of this server's; ask for a new one")
    try:
        job_id, expires_at = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (binascii.Error, ValueError, TypeError) as error:
        raise InvalidToken("the token cannot be read; ask for a new one") from error
    if time.time() >= expires_at:
        raise InvalidToken("the token has expired; ask for a new one")
    return str(job_id), float(expires_at)


def _signature(body: str, secret: str) -> str:
    key = check_secret(secret).encode()
    return _encode(hmac.digest(key, _PURPOSE + body.encode("utf-8", "replace"), hashlib.sha256))


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
