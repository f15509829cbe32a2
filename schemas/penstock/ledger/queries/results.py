"""Results that are too large for a row of the ledger: they are in storage, and the row holds a reference."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from penstock.config.errors import ObjectNotFound, StorageError
from penstock.schemas.storage import Storage

_FOLDER = "results"
_LONGEST = 180
"""Of an id in a key; a part of one may have 200 bytes."""
_LEFT_BEHIND = 20
"""Attempts before the last that may have crashed after storing theirs; `max_crashes` allows fewer in a row."""


def result_ref(job_id: str, fence: int) -> str:
    """Storage key of the result of a job's claim.

    It contains the fence, so a worker that lost its claim cannot overwrite the result of the one that has it.
    """
    name = quote(job_id, safe="").replace(".", "%2E")
    if len(name) > _LONGEST:
        name = hashlib.sha256(job_id.encode()).hexdigest()
    return f"{_FOLDER}/{name}/{fence}.json"


def write_result(storage: Storage, job_id: str, fence: int, result: bytes) -> str:
    """Store a result, as JSON, and return its reference. Raises StorageError."""
    ref = result_ref(job_id, fence)
    storage.write(ref, io.BytesIO(result), "application/json")
    return ref


def read_result(storage: Storage, ref: str) -> Any:
    """The result as JSON values.

    Raises:
        ObjectNotFound: it is gone; StorageError: the storage cannot be reached.
    """
    try:
        with storage.read(ref) as stream:
            return json.loads(stream.read())
    except ObjectNotFound as error:
        detail = "the result is not in the storage any more, or storage_url names another"
        raise ObjectNotFound(f"{detail}: {error}") from error


def delete_result(storage: Storage, ref: str) -> None:
    """Delete a result, and those of earlier attempts that crashed before their results were recorded.

    Raises:
        StorageError: the storage cannot be reached; deleting again is harmless.
    """
    folder, _, last = ref.rpartition("/")
    newest = int(last.removesuffix(".json"))
    for fence in range(newest, max(newest - _LEFT_BEHIND, 0), -1):
        storage.delete(f"{folder}/{fence}.json")


class StoredResult:
    """A result in storage, read when it is first needed."""

    def __init__(self, ref: str, open_storage: Callable[[], Storage] | None) -> None:
        self.ref, self._open_storage = ref, open_storage
        self._read: list[Any] = []
        self._error: StorageError | None = None

    def fetch(self) -> None:
        """Read the result now. An error is kept, and raised by `value`."""
        try:
            self.value()
        except StorageError as error:
            self._error = error

    def value(self) -> Any:
        """The result as JSON values. Raises StorageError; see `read_result`."""
        if self._error is not None:
            raise self._error
        if not self._read:
            if self._open_storage is None:
                raise StorageError(f"the result is in the storage, under {self.ref!r}, which was not opened here")
            self._read.append(read_result(self._open_storage(), self.ref))
        return self._read[0]
