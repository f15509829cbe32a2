"""`/audit`: who did what, with filters, and as files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.workers.engines.celery.flower.access.people import Person
from penstock.workers.engines.celery.flower.page import Download, Page, Parameters, plain

_BATCH = 1000
_COLUMNS = ("id", "at", "actor", "act", "subject_kind", "subject", "count", "detail")
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet would calculate."""


def _in_utc(time: datetime) -> datetime:
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


Time = Annotated[datetime, AfterValidator(_in_utc)]
"""ISO 8601; without a zone it is in UTC."""


class Filters(Parameters):
    actor: str | None = Field(default=None, max_length=255)
    act: list[str] = Field(default=[], max_length=20)
    subject: str | None = Field(default=None, max_length=255)
    since: Time | None = None
    until: Time | None = None

    def find(self, ledger: Database, person: Person, *, after: str | None, limit: int) -> list[audit.Act]:
        """A page of the acts that this person may see: all, or its own if it has bounds."""
        actor = person.name if person.scope.is_bounded else self.actor
        if person.scope.is_bounded and self.actor not in (None, person.name):
            return []
        filters = {"acts": self.act, "subject": self.subject, "since": self.since, "until": self.until}
        return audit.find(ledger, actor=actor, after=after, limit=limit, **filters)  # type: ignore[arg-type]


class Audit(Page):
    path, name, tab, title = r"/audit", "audit", "audit", "Audit"
    template = "house/audit.html"

    class Query(Filters):
        cursor: str | None = Field(default=None, max_length=64)
        limit: int = Field(default=50, ge=1, le=500)

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        matching = query.find(self.ledger, self.person, after=query.cursor, limit=query.limit + 1)
        acts = matching[: query.limit]
        following = acts[-1].id if len(matching) > query.limit else None
        return {"acts": [asdict(act) for act in acts], "next": following, "only_own": self.person.scope.is_bounded}


class Export(Download):
    """`/api/penstock/audit/export.csv` and `.jsonl`: all lines that match, however many."""

    path = r"/audit/export\.(csv|jsonl)"
    Query = Filters

    def lines(self, query: Any, *path_arguments: str) -> Iterator[str]:
        [form] = path_arguments
        self.set_header("Content-Disposition", f'attachment; filename="audit.{form}"')
        self.set_header("Content-Type", "text/csv; charset=UTF-8" if form == "csv" else "application/jsonl")
        write = _as_csv if form == "csv" else _as_json_lines
        if form == "csv":
            yield write([dict(zip(_COLUMNS, _COLUMNS, strict=True))])
        after = None
        while acts := query.find(self.ledger, self.person, after=after, limit=_BATCH):
            yield write([asdict(act) for act in acts])
            after = acts[-1].id


def _as_csv(acts: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    rows = csv.writer(text)
    for act in acts:
        rows.writerow([_cell(act[name]) for name in _COLUMNS])
    return text.getvalue()


def _as_json_lines(acts: Sequence[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(act, default=plain, ensure_ascii=False)}\n" for act in acts)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        value = json.dumps(value, ensure_ascii=False)
    text = "" if value is None else value.isoformat() if isinstance(value, datetime) else str(value)
    return f"'{text}" if text.startswith(_FORMULAS) else text


HANDLERS = (Audit, Export)
