"""Job ids: UUID version 7 (RFC 9562, section 5.7), which sort by the time they were made."""

from __future__ import annotations

import hashlib
import os
import time
from datetime import UTC, datetime


def new_id() -> str:
    """A UUIDv7 as 36 lower-case characters: 48 bits of Unix milliseconds, then 74 random bits."""
    return _uuid7(time.time_ns() // 1_000_000, os.urandom(10))


def derived_id(time: datetime, *parts: str) -> str:
    """The UUIDv7 of a time (aware), with a hash of texts in place of the random bits: it is the same each time."""
    return _uuid7(int(time.timestamp() * 1000), hashlib.sha256("\0".join(parts).encode()).digest()[:10])


def _uuid7(milliseconds: int, ten_bytes: bytes) -> str:
    tail = int.from_bytes(ten_bytes, "big")
    value = (milliseconds << 80) | (0x7 << 76) | ((tail >> 4) & 0xFFF) << 64
    value |= (0b10 << 62) | (tail >> 16 & 0x3FFF_FFFF_FFFF_FFFF)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def made_at(job_id: str) -> datetime | None:
    """When a UUIDv7 was made (UTC, to the millisecond); None for an id of another form."""
    if len(job_id) != 36 or job_id[14] != "7":
        return None
    try:
        milliseconds = int(job_id[:8] + job_id[9:13], 16)
    except ValueError:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def first_id(time: datetime) -> str:
    """The smallest id that `new_id` can make at a time (aware), to compare others with."""
    value = f"{max(int(time.timestamp() * 1000), 0):012x}"
    return f"{value[:8]}-{value[8:]}-7000-8000-{0:012x}"
