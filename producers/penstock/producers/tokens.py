"""Tokens that let a browser follow one job for a while, without a key or a session of its own.

A backend makes a token for a page it serves; until it expires, its holder may read this job's state and progress, and
cancel the job if the token says so, and nothing else. It is signed, not encrypted, and cannot be revoked sooner.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from penstock.config.errors import ConfigError, InvalidToken
from penstock.schemas.verbs import Verb, verbs_of

__all__ = ["check_secret", "progress_token", "read_progress_token"]

LEAST_SECRET_BYTES = 16
VERBS = (Verb.READ, Verb.CANCEL)
"""What a token may carry."""
_LONGEST = 1024
_PURPOSE = b"penstock.progress.v1:"
"""Signed with each token, so that nothing else that is signed with the same secret passes for one."""


@dataclass(frozen=True, slots=True)
class Token:
    """Contents of a token.

    Attributes:
        expires_at: seconds since the epoch.
        verbs: what its holder may do with the job.
    """

    job_id: str
    expires_at: float
    verbs: tuple[Verb, ...]


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


def progress_token(
    job_id: str, *, secret: str, expires_in: timedelta = timedelta(hours=1), verbs: Iterable[str] = (Verb.READ,)
) -> str:
    """A token to follow one job, of characters that need no quoting in a URL.

    Arguments:
        secret: at least 16 bytes that only the backend and the gateway know.
        verbs: `read` to follow the job, `cancel` to cancel it through the gateway.

    Raises:
        ConfigError: the secret is too short.
        ValueError: it would have expired already, it has no verb, or one that a token cannot carry.
    """
    if expires_in <= timedelta():
        raise ValueError(f"expires_in must be positive, not {expires_in}")
    contents: list[object] = [job_id, int(time.time() + expires_in.total_seconds())]
    if not (carried := verbs_of(verbs, VERBS)):
        raise ValueError("a token needs a verb: read, cancel or both")
    if carried != (Verb.READ,):
        contents.append(carried)
    body = _encode(json.dumps(contents).encode())
    return f"{body}.{_signature(body, secret)}"


def read_progress_token(token: str, *, secret: str) -> str:
    """The id of the job that a token lets its holder follow.

    Raises:
        InvalidToken: the token is not signed with this secret, has expired, or is not for following the job.
        ConfigError: the secret is too short.
    """
    return read_following_token(token, secret=secret).job_id


def read_following_token(token: str, *, secret: str) -> Token:
    """The contents of a token that lets its holder follow a job.

    Raises:
        InvalidToken, ConfigError: see `read_progress_token`.
    """
    contents = read_token(token, secret=secret)
    if Verb.READ not in contents.verbs:
        raise InvalidToken("the token is not for following the job; ask for one with the verb read")
    return contents


def read_token(token: str, *, secret: str) -> Token:
    """The contents of a token.

    Raises:
        InvalidToken: the token is not signed with this secret, has expired, or carries a verb that does not exist.
        ConfigError: the secret is too short.
    """
    body, _, signature = token[:_LONGEST].partition(".")
    if not hmac.compare_digest(_signature(body, secret).encode(), signature.encode("utf-8", "replace")):
        raise InvalidToken("the token is not one of this server's; ask for a new one")
    try:
        job_id, expires_at, *more = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        [names] = more or [(Verb.READ,)]
        contents = Token(str(job_id), float(expires_at), verbs_of(names, VERBS))
    except (binascii.Error, ValueError, TypeError) as error:
        raise InvalidToken(f"the token cannot be read ({error}); ask for a new one") from error
    if time.time() >= contents.expires_at:
        raise InvalidToken("the token has expired; ask for a new one")
    return contents


def _signature(body: str, secret: str) -> str:
    key = check_secret(secret).encode()
    return _encode(hmac.digest(key, _PURPOSE + body.encode("utf-8", "replace"), hashlib.sha256))


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
