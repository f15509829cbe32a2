"""Records of a page → rows of the table."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from penstock.config.sections.builtin.syncs import SyncSettings
from penstock.config.sections.values import read_value
from penstock.schemas.builtin.paths import find
from penstock.workers.builtin.syncs.changes import is_ahead, is_later, later
from penstock.workers.builtin.syncs.columns import DIGITS, MAX_ID, SCALE
from penstock.workers.handlers.returns import Permanent

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that does not fit: its id where it has one, the reason, and the record as JSON."""

    id: str | None
    reason: str
    text: str


@dataclass(slots=True)
class Batch:
    """A page for the table.

    Attributes:
        rows: with distinct ids. A column whose field is absent is not in its row.
        deleted: ids of tombstones → their change.
        seen: the greatest change among the records, without those in the future.
        copies: older copies of an id.
        ahead: records whose change is in the future.
        missing: columns whose field some record lacks.
        new_fields: fields that no column has.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    deleted: dict[Any, str | None] = field(default_factory=dict)
    bad: list[BadRecord] = field(default_factory=list)
    seen: str | None = None
    copies: int = 0
    ahead: int = 0
    missing: set[str] = field(default_factory=set)
    new_fields: set[str] = field(default_factory=set)

    @property
    def skipped(self) -> int:
        return self.copies + len(self.bad)


def read_records(name: str, sync: SyncSettings, records: list[Any], now: datetime) -> Batch:
    """Make rows of records as the settings map them. Of two with one id the newer counts, else the later.

    Arguments:
        now: by the server's clock, aware.

    Raises:
        Permanent: a record does not fit, unless `on_bad_record` says otherwise; names its id and the column.
    """
    batch = Batch()
    rows: dict[Any, tuple[dict[str, Any] | None, str | None]] = {}
    mapped = {(column.path if column.path is not None else key).split(".")[0] for key, column in sync.columns.items()}
    mapped |= {path.split(".")[0] for path in (sync.id, sync.updated, sync.deleted) if path}
    for number, record in enumerate(records, start=1):
        try:
            key = _id(sync, record)
            change = _change(sync, record)
            is_tombstone = sync.deleted is not None and find(record, sync.deleted) not in (None, False, "", 0)
            row, missing = (None, set()) if is_tombstone else _row(sync, key, change, record)
            if sync.contract == "freeze":
                _check_contract(sync, record, missing, mapped)
        except ValueError as error:
            which = find(record, sync.id) if isinstance(record, dict) else None
            which = which if isinstance(which, str | int) else None
            if sync.on_bad_record == "fail":
                label = f"number {number} of the page" if which is None else f"id {which!r}"
                raise Permanent(f"sync {name!r}: record {label}: {error}") from error
            # Escaped, so that every database takes it.
            text = json.dumps(record, default=str)
            batch.bad.append(BadRecord(None if which is None else _escaped(str(which)), _escaped(str(error)), text))
            continue
        batch.missing |= missing
        if sync.columns:
            batch.new_fields |= record.keys() - mapped
        if change is not None and is_ahead(change, now, sync.updated_as):
            batch.ahead += 1
            change = None
        if key in rows:
            batch.copies += 1
            if (other := rows[key][1]) is not None and change is not None and is_later(other, change):
                continue
        rows[key] = row, change
        batch.seen = later(batch.seen, change)
    batch.rows = [row for row, _ in rows.values() if row is not None]
    batch.deleted = {key: change for key, (row, change) in rows.items() if row is None}
    return batch


def _row(sync: SyncSettings, key: Any, change: str | None, record: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The row of a record, and the columns whose field it lacks."""
    row: dict[str, Any] = {"id": key}
    missing: set[str] = set()
    if sync.updated is not None and find(record, sync.updated, _ABSENT) is _ABSENT:
        missing.add(sync.updated)
    if not sync.columns:
        return {**row, "updated_at": change, "record": _document(record)}, missing
    for name, column in sync.columns.items():
        if name == "id":
            continue
        value = find(record, column.path if column.path is not None else name, _ABSENT)
        if value is _ABSENT:
            if column.absent == "keep":
                missing.add(name)
                continue
            value = None
        try:
            row[name] = None if value is None else _value(value, column.type)
        except ValueError as error:
            raise ValueError(f"column {name!r}: {error}") from error
    return row, missing


def _check_contract(sync: SyncSettings, record: Any, missing: set[str], mapped: set[str]) -> None:
    if missing:
        raise ValueError(f"no field for column {min(missing)!r}, and contract = 'freeze'")
    if sync.columns and (new := record.keys() - mapped):
        raise ValueError(f"field {min(new)!r} is new, and contract = 'freeze'; add a column for it")


def _id(sync: SyncSettings, record: Any) -> str | int:
    if not isinstance(record, dict):
        raise ValueError("expected a JSON object")
    value = find(record, sync.id)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"no text or whole number at id = {sync.id!r}")
    if "id" in sync.columns and sync.columns["id"].type == "int":
        return int(read_value(value, "int"))
    text = _text(str(value))
    if len(text) > MAX_ID:
        raise ValueError(f"its id has more than {MAX_ID} letters")
    return text


def _change(sync: SyncSettings, record: dict[str, Any]) -> str | None:
    value = find(record, sync.updated) if sync.updated else None
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal | None):
        raise ValueError(f"no text or number at updated = {sync.updated!r}")
    return None if value in (None, "") else _text(str(value))


def _value(value: Any, type: Any) -> Any:
    if type == "json":
        return _document(value)
    typed = read_value(value, type)
    if isinstance(typed, str):
        return _text(typed)
    if isinstance(typed, datetime):
        # MySQL and SQLite keep no zone: all is UTC there.
        return (typed.replace(tzinfo=UTC) if typed.tzinfo is None else typed).astimezone(UTC)
    if isinstance(typed, Decimal) and typed != 0:
        exponent = typed.normalize().as_tuple().exponent
        if isinstance(exponent, int) and -exponent > SCALE:
            raise ValueError(f"more than {SCALE} digits behind the point, which would be rounded; declare it as str")
        if typed.adjusted() >= DIGITS - SCALE:
            raise ValueError(f"more than {DIGITS - SCALE} digits before the point; declare it as str")
    return typed


def _document(value: Any) -> Any:
    """JSON that every database takes: MariaDB refuses half of a surrogate pair, even spelled out."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise ValueError("it is not valid Unicode") from error
    return value


def _text(value: str) -> str:
    """Text that every database holds: no NUL, no half of a surrogate pair."""
    if "\x00" in value:
        raise ValueError("it holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it is not valid Unicode") from error
    return value


def _escaped(text: str) -> str:
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
