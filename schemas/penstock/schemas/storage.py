"""Object storage as its users see it; `penstock.producers.storage` has files and S3."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import IO, BinaryIO
from urllib.parse import quote, unquote

from penstock.config.errors import InvalidKey

CHUNK = 256 * 1024
"""Bytes read at a time, here and by the handlers."""


_LONGEST_NAME = 120
"""Of a tenant in a key, percent-encoded."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object's size in bytes and its media type."""

    size: int
    media_type: str


def check_key(key: str) -> str:
    """The key, if it is fit for every storage: relative, parts separated by single slashes, no `.` or `..`.

    Raises:
        InvalidKey: says what is wrong.
    """
    parts = key.split("/")
    if not key or key.startswith("/"):
        raise InvalidKey(f"storage key {key!r} must be relative and not empty")
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidKey(f"storage key {key!r} must not have empty parts, '.' or '..'")
    if "\\" in key or any(ord(character) < 32 or ord(character) == 127 for character in key):
        raise InvalidKey(f"storage key {key!r} must not have backslashes or control characters")
    try:
        encoded = key.encode()
    except UnicodeEncodeError as error:
        raise InvalidKey(f"storage key {key!r} is not valid Unicode") from error
    if len(encoded) > 1024 or any(len(part.encode()) > 200 for part in parts):
        raise InvalidKey(f"storage key {key[:80]!r}… is longer than 1024 bytes, or one of its parts than 200")
    return key


def tenant_folder(tenant: str, prefix: str = "tenants/{tenant}") -> str:
    """Folder of a tenant in the storage: `tenants/acme`, and `tenants/a%2Fb` for `a/b`. No two tenants share one.

    Arguments:
        prefix: the setting `tenant_storage_prefix`.
    """
    name = quote(tenant, safe="", errors="surrogatepass") or "%empty"
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > _LONGEST_NAME:
        name = "%sha256-" + hashlib.sha256(name.encode()).hexdigest()
    return prefix.replace("{tenant}", name)


class Storage(ABC):
    """Safe to use from several threads. Every method checks the key and raises InvalidKey or StorageError."""

    root: str = ""
    """Beginning of all keys that may be used; empty: any key may."""

    @abstractmethod
    def read(self, key: str) -> AbstractContextManager[IO[bytes]]:
        """Open an object as a stream; `.read(CHUNK)` until it is empty. Raises ObjectNotFound."""

    @abstractmethod
    def write(self, key: str, source: BinaryIO, media_type: str | None = None) -> None:
        """Store all that is left of a stream under a key: readers see the old object or the whole new one."""

    @abstractmethod
    def find(self, key: str) -> Stored | None:
        """Size and media type; None if the object does not exist."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete an object if it is there."""

    @abstractmethod
    def link(self, key: str, expires: timedelta = timedelta(days=1)) -> str:
        """A URL to read it without credentials: presigned for S3 (at most 7 days), `file://` for a folder."""

    def close(self) -> None:  # noqa: B027  # nothing to close is fine
        """Close connections."""


class TenantStorage(Storage):
    """The folder of one tenant. Keys are those of the whole storage; one outside of the folder raises InvalidKey.

    Arguments:
        prefix: the setting `tenant_storage_prefix`.
    """

    def __init__(self, storage: Storage, tenant: str, prefix: str = "tenants/{tenant}") -> None:
        self._storage, self._tenant = storage, tenant
        self.root = f"{tenant_folder(tenant, prefix)}/"

    def read(self, key: str) -> AbstractContextManager[IO[bytes]]:
        return self._storage.read(self._checked(key))

    def write(self, key: str, source: BinaryIO, media_type: str | None = None) -> None:
        self._storage.write(self._checked(key), source, media_type)

    def find(self, key: str) -> Stored | None:
        return self._storage.find(self._checked(key))

    def delete(self, key: str) -> None:
        self._storage.delete(self._checked(key))

    def link(self, key: str, expires: timedelta = timedelta(days=1)) -> str:
        return self._storage.link(self._checked(key), expires)

    def _checked(self, key: str) -> str:
        check_key(key)
        if not key.startswith(self.root):
            raise InvalidKey(
                f"storage key {key!r} is not below {self.root!r}, the folder of tenant {self._tenant!r}; store the "
                "object there, or change tenant_storage_prefix"
            )
        # A server in front of the storage may decode once more than it should.
        name = key.removeprefix(self.root)
        while (decoded := unquote(name)) != name:
            name = decoded
        try:
            check_key(name)
        except InvalidKey as error:
            raise InvalidKey(f"storage key {key!r} of tenant {self._tenant!r}, decoded: {error}") from error
        return key
