"""Finding of a check: its level, what was seen, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LEAST_PASSWORD = 12
_DEFAULTS = {
    *("admin", "changeme", "change-me", "default", "guest", "letmein", "mariadb", "mysql", "password", "penstock"),
    *("postgres", "rabbitmq", "redis", "root", "secret", "test", "user"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of a check.

    Attributes:
        level: FAIL: do not go into production so; WARN: decide, and know why; OK.
        advice: what to do; empty for OK.
    """

    check: str
    level: Literal["OK", "WARN", "FAIL"]
    detail: str
    advice: str = ""


def ok(check: str, detail: str) -> Finding:
    return Finding(check, "OK", detail)


def warn(check: str, detail: str, advice: str) -> Finding:
    return Finding(check, "WARN", detail, advice)


def fail(check: str, detail: str, advice: str) -> Finding:
    return Finding(check, "FAIL", detail, advice)


def weakness(secret: str, user: str | None = None, *, least: int = LEAST_PASSWORD) -> str | None:
    """Why a password or secret is easy to guess, without the secret; None if it does not seem so.

    Arguments:
        least: characters below which it is too short.
    """
    text = secret.strip()
    if text.lower() in _DEFAULTS:
        return "is a default that everyone tries"
    if user and text == user:
        return "is the user's name"
    if len(text) < least:
        return f"has {len(text)} characters, fewer than {least}"
    if len(set(text)) < 6:
        return "repeats a few characters"
    return None
