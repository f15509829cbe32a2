"""`/jobs`: lists of jobs by filters, and acts on those that are selected or on all that match."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import Field
from tornado.web import HTTPError

from penstock.config.errors import BrokerUnavailable, UnknownQueue
from penstock.ledger.queries.jobs import JobFilter, find_page
from penstock.ledger.transitions.selected import Act as JobAct
from penstock.ledger.transitions.selected import Cancel, Move, Reschedule, Retry, act_on_all, dry_run
from penstock.producers.senders.peeks import End
from penstock.schemas.jobs.kind import registry
from penstock.schemas.states import State
from penstock.workers.engines.celery.flower.page import Act, Page, Parameters
from penstock.workers.engines.celery.flower.pages.work.job_query import JobQuery, read_time
from penstock.workers.fleet.in_broker import find_in_broker
from penstock.workers.fleet.queues import Fleet, queue_names

PART_SECONDS = 2.0
"""How long an act goes on before it answers. The browser then asks for the rest, shows the progress, and may stop."""


class Jobs(Page):
    path, name, tab, title = r"/jobs", "jobs", "jobs", "Jobs"
    template = "work/jobs.html"

    class Query(JobQuery):
        cursor: str | None = None
        limit: int = Field(default=50, ge=1, le=500)
        in_broker: End | None = Field(default=None, description="Also look at these jobs in the broker.")

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        filter = query.job_filter(self.person.scope)
        page = find_page(self.ledger, filter, after=query.cursor, limit=query.limit)
        rows = [{**row._mapping, "tags": json.loads(row.tags or "[]")} for row in page.rows]
        for row in rows:
            for name in ("listed_at", "listed_id"):
                row.pop(name, None)
        return {
            "jobs": rows,
            "next": page.next,
            "looked_back_to": page.looked_back_to,
            "given": query.given,
            "states": [str(state) for state in State],
            "in_broker": None if query.in_broker is None else self._in_broker(filter, query),
        }

    def _in_broker(self, filter: JobFilter, query: Any) -> dict[str, Any]:
        """Jobs that wait in the broker and are not on record."""
        settings = self.settings_of_penstock
        names = queue_names(settings, self.ledger, Fleet.read(self.ledger, settings.lease))
        try:
            backlogs = self.services.backlogs(names)
        except BrokerUnavailable as error:
            return {"jobs": [], "waiting": None, "note": str(error)}
        seen = find_in_broker(
            self.ledger, self.services.peeks, backlogs, filter, end=query.in_broker, limit=query.limit
        )
        return {"jobs": seen.rows(), "waiting": seen.waiting, "note": seen.note}


class ActOnJobs(Act):
    """Cancel, retry, reschedule or move: jobs by their ids, or all that match filters.

    It answers with `next` if time was up before the end: repeat the request with `after` and `line` from the answer.
    """

    path = r"/acts/jobs"

    class Body(Parameters):
        act: Literal["cancel", "retry", "reschedule", "move"]
        ids: list[str] | None = Field(default=None, max_length=500)
        filter: JobQuery | None = None
        dry_run: bool = False
        force: bool = False
        due: str | None = Field(default=None, description="Reschedule: `now`, `in 1h`, or a time.")
        queue: str | None = None
        after: str | None = None
        line: str | None = None

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        act = self._act(body)
        filter = self._filter(body)
        if body.dry_run:
            number, is_exact = dry_run(self.ledger, filter, act)
            return {"matching": number, "exact": is_exact, "message": f"{number:,}{'' if is_exact else '+'} jobs"}
        until = time.monotonic() + PART_SECONDS
        progress = act_on_all(
            self.ledger,
            filter,
            act,
            actor=self.person.name,
            is_stopped=lambda: time.monotonic() > until,
            after=body.after,
            line=body.line,
        )
        return {
            "done": progress.done,
            "refused": progress.refused,
            "next": progress.next if progress.stopped else None,
            "line": progress.line,
            "message": f"{progress.done:,} jobs changed" + (f", {progress.refused:,} not" if progress.refused else ""),
        }

    def _filter(self, body: Any) -> JobFilter:
        if (body.ids is None) == (body.filter is None):
            raise HTTPError(400, "give ids or a filter")
        if body.ids is not None:
            return JobFilter(ids=tuple(body.ids), scope=self.person.scope)
        filter: JobFilter = body.filter.job_filter(self.person.scope)
        return filter

    def _act(self, body: Any) -> JobAct:
        match body.act:
            case "cancel":
                return Cancel()
            case "retry":
                return Retry(body.force)
            case "reschedule":
                return Reschedule(read_due(body.due or ""))
            case _:
                return Move(self._queue(body.queue or ""))

    def _queue(self, name: str) -> str:
        queues = registry.queues() | set(self.settings_of_penstock.queues)
        if name not in queues or not self.person.scope.includes_queue(name):
            raise UnknownQueue(f"unknown queue {name!r}; name it in a kind, or list it in penstock.toml")
        return name


def read_due(text: str) -> datetime:
    """`now`, `in 1h`, or a time. Raises ValueError: it is none of them."""
    text = text.strip()
    if text == "now":
        return datetime.now(UTC)
    if text.startswith("in "):
        now = datetime.now(UTC)
        return now + max(now - read_time(text.removeprefix("in ")), timedelta())
    return read_time(text)


HANDLERS = (Jobs, ActOnJobs)
