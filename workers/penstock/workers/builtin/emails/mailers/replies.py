"""Replies of SMTP servers: for good, for now, or about a limit of the sender's account."""

from __future__ import annotations

import re
from datetime import timedelta

QUOTA_WAIT = timedelta(hours=1)
"""The shortest wait after a reply about a quota."""

_OURS = frozenset({530, 534, 535, 538})
"""Replies about our authentication, not about the mail (RFC 4954, section 6): an operator can correct the settings."""
_QUOTA = re.compile(
    r"\b5\.4\.5\b"  # Gmail's and Google Workspace's daily limit
    r"|\b5\.1\.90\b|\b5\.7\.(?:232|233|705)\b"  # Exchange Online's limits of a mailbox, a trial tenant, a tenant
    r"|SubmissionQuotaExceeded"
    r"|\b(?:daily|hourly|monthly|sending|sender|user) (?:\S+ ){0,3}(?:limit|quota|credits)\b|\bmaximum credits\b",
    re.IGNORECASE,
)
_RATE = re.compile(r"\brate limit|\bsending rate\b|\bthrottl|\btoo many (?:messages|mails|emails)\b", re.IGNORECASE)
_SYSTEM = re.compile(r"\b5\.3\.[12]\b")
"""The mail system is full, or takes no messages now (RFC 3463, section 3.4)."""
_SIZE = re.compile(r"\b5\.3\.4\b|\bsize\b", re.IGNORECASE)
"""A mail that is too large stays so, though its reply speaks of a limit, too."""


def is_quota(code: int, text: str) -> bool:
    """Whether the reply is about how much the account may send an hour, a day or a month."""
    return 400 <= code < 600 and bool(_QUOTA.search(text)) and not _SIZE.search(text)


def is_for_good(code: int, text: str) -> bool:
    """Whether the same mail will be refused again.

    A 5xx is for good (RFC 5321, section 4.2.1), unless it is about our login, the server's state, a quota or a rate.
    """
    for_now = code in _OURS or _SYSTEM.search(text) or is_quota(code, text) or _RATE.search(text)
    return 500 <= code < 600 and not for_now
