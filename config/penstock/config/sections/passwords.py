"""Hashes of passwords, as text that says how it was made: `scrypt$16384$8$1$SALT$HASH`, salt and hash in base64."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

_SCHEME = "scrypt"
_N, _R, _P = 2**14, 8, 1
"""Cost of a new hash: 16 MiB of memory, some 50 ms."""
_SALT_BYTES, _HASH_BYTES = 16, 32
_MOST_MEMORY = 256 * 1024 * 1024
LONGEST = 1024
"""Characters of a password; a longer one is never hashed."""


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """A hash with the cost and the salt by which it was made."""

    n: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    @classmethod
    def parse(cls, text: str) -> PasswordHash:
        """Raises ValueError: the text is not a hash, or a weak one, or one that takes too much memory to check."""
        scheme, *parts = text.split("$")
        if scheme != _SCHEME or len(parts) != 5:
            raise ValueError("is not a hash of a password; make one with penstock console hash-password")
        try:
            n, r, p = map(int, parts[:3])
            salt, digest = (base64.b64decode(part, validate=True) for part in parts[3:])
        except (ValueError, binascii.Error):
            raise ValueError("is not a hash of a password; make one with penstock console hash-password") from None
        if n < _N or n & (n - 1) or r < _R or not 1 <= p <= 16 or len(salt) < _SALT_BYTES or len(digest) < _HASH_BYTES:
            raise ValueError("is a weak hash of a password; make one with penstock console hash-password")
        if 128 * n * r > _MOST_MEMORY:
            raise ValueError("is a hash that takes more than 256 MiB of memory to check")
        return cls(n, r, p, salt, digest)

    def matches(self, password: str) -> bool:
        """Whether it is the hash of this password. Takes as long for a wrong one."""
        return hmac.compare_digest(_digest(password, self.n, self.r, self.p, self.salt, len(self.digest)), self.digest)


def hash_password(password: str) -> str:
    """The hash of a password, with a new salt.

    Raises:
        ValueError: it is empty, too long, or has characters that are not printable.
    """
    if not password or len(password) > LONGEST or not password.isprintable():
        raise ValueError(f"a password has 1 to {LONGEST} printable characters")
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = _digest(password, _N, _R, _P, salt, _HASH_BYTES)
    return "$".join((_SCHEME, str(_N), str(_R), str(_P), *(base64.b64encode(part).decode() for part in (salt, digest))))


def _digest(password: str, n: int, r: int, p: int, salt: bytes, length: int) -> bytes:
    text = password[: LONGEST + 1].encode("utf-8", "surrogatepass")
    return hashlib.scrypt(text, salt=salt, n=n, r=r, p=p, maxmem=2 * 128 * n * r + 1024 * 1024, dklen=length)


def _checked(text: str) -> str:
    PasswordHash.parse(text)
    return text


HashText = Annotated[str, AfterValidator(_checked)]
"""Text of a hash, as `hash_password` makes it."""
