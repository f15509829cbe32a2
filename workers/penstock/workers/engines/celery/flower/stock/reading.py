"""Flower's lists of tasks and their details, read from the ledger within the person's scope."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from tornado.web import HTTPError

from penstock.config.errors import JobNotFound
from penstock.ledger.queries import jobs
from penstock.schemas.jobs.kind import registry
from penstock.workers.engines.celery.flower.access.guarded import Guarded
from penstock.workers.engines.celery.flower.page import Handler
from penstock.workers.engines.celery.flower.stock.words import celery_state, listed, shown, shown_result, states_of
from penstock.workers.engines.celery.flower.wording import href

MOST_TASKS = 1000
"""The most jobs of a list; Flower's `limit`."""
_TASKS = 100
_LOOK_AT = 5000
"""Jobs that are looked at for a list, where the person's bounds or filters leave most of them out."""
_MINUTES = "%Y-%m-%d %H:%M"


class Stock(Handler):
    """A route of Flower's API that reads. Errors are plain text."""

    def write_problem(self, text: str) -> None:
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(text)

    def argument(self, name: str) -> str | None:
        """A filter; `All` is Flower's word for none."""
        value = self.flower_argument(name, None, escape=False)
        return None if value in ("", "All") else value

    def whole(self, name: str, default: int, most: int) -> int:
        """A number from 0 to `most`; more counts as the most."""
        number: int = self.flower_argument(name, default, type=int)
        return min(max(number, 0), most)


class Tasks(Stock):
    """`GET /api/tasks`: jobs on record by id, the newest first; at most 1,000."""

    async def get(self) -> None:
        if search := self.argument("search"):
            raise HTTPError(
                400,
                f"search {search[:50]!r} is not supported; filter by taskname, state and worker, or "
                "use /api/penstock/jobs".replace("%", "%%"),
            )
        self.write_json(await self.in_thread(self._read))

    def _read(self) -> dict[str, Any]:
        limit, offset = self.whole("limit", _TASKS, MOST_TASKS), self.whole("offset", 0, _LOOK_AT)
        rows = _find(
            self,
            name=self.argument("taskname"),
            state=self.argument("state"),
            worker=self.argument("workername"),
            since=_minute("received_start", self.argument("received_start")),
            until=_minute("received_end", self.argument("received_end")),
            limit=limit + offset,
        )
        matching = [listed(row) for row in rows[offset:]]
        if sort_by := self.argument("sort_by"):
            matching = _sorted(matching, sort_by.lstrip("-"), sort_by.startswith("-"))
        return {task["uuid"]: task for task in matching}


class TaskTypes(Stock):
    """`GET /api/task/types`: the kinds that the console or a worker knows."""

    @property
    def workers(self) -> dict[str, Any]:
        return self.application.workers  # type: ignore[no-any-return]

    def get(self) -> None:
        kind_names = {kind.name for kind in registry}
        for worker in list(self.workers.values()):
            kind_names |= {name.split(" ")[0] for name in worker.get("registered") or ()}
        scope = self.person.scope
        within = [name for name in kind_names if type(scope)(kinds=scope.kinds).includes(name, None, None)]
        self.write_json({"task-types": sorted(within)})


class TaskInfo(Stock):
    """`GET /api/task/info/ID`: one job."""

    async def get(self, job_id: str) -> None:
        self.write_json(await self.in_thread(lambda: shown(*_visible(self, job_id))))


class TaskResult(Stock):
    """`GET /api/task/result/ID`: the state of a job and, once it has ended, its result."""

    async def get(self, job_id: str) -> None:
        self.write_json(await self.in_thread(self._read, job_id))

    def _read(self, job_id: str) -> dict[str, Any]:
        row, _ = _visible(self, job_id)
        return {"task-id": job_id, "state": celery_state(row.state), **shown_result(self.ledger, job_id)}


class TasksTable(Stock):
    """`/tasks/datatable`: the rows of Flower's page of tasks. Its POST reads as well."""

    async def get(self) -> None:
        self.write_json(await self.in_thread(self._read))

    async def post(self) -> None:
        await self.get()

    def _read(self) -> dict[str, Any]:
        draw = self.flower_argument("draw", type=int, required=True)
        start, length = self.whole("start", 0, _LOOK_AT), self.whole("length", 10, MOST_TASKS)
        search = self.flower_argument("search[value]", "", escape=False).strip()
        rows = _search(self, search, start + length + 1)
        page = [listed(row) for row in rows[start : start + length]]
        return {"draw": draw, "data": page, "recordsTotal": len(rows), "recordsFiltered": len(rows)}


class TaskPage(Handler):
    """`/task/ID` leads to the job's page."""

    def initialize(self, is_json: bool = False) -> None:
        super().initialize(is_json)

    def get(self, job_id: str) -> None:
        self.redirect(href(self, f"jobs/{quote(job_id, safe='')}"))


class TasksPage(Guarded):
    """In front of Flower's `/tasks`, which leads to `/jobs` where that is."""

    async def prepare(self) -> None:
        await super().prepare()
        if not self._finished and self.application.has_page("jobs"):  # type: ignore[attr-defined]
            self.redirect(href(self, "jobs"))


class ForAll(Guarded):
    """In front of a handler of Flower's whose answer is about all jobs."""

    async def prepare(self) -> None:
        await super().prepare()
        if not self._finished and self.person.scope.is_bounded:
            self.refuse(f"this is about all jobs, and {self.person.name} has bounds ({self.person.bounds})")


def _visible(handler: Handler, job_id: str) -> tuple[Any, Sequence[Any]]:
    """A job and its attempts. Raises JobNotFound: it is not on record, or not within the person's scope."""
    row, attempts = jobs.show(handler.ledger, job_id)
    if not handler.person.scope.includes(row.kind, row.queue, row.tenant):
        raise JobNotFound(f"no job with the id {job_id} is recorded in the ledger")
    return row, attempts


def _search(handler: Handler, text: str, limit: int) -> Sequence[Any]:
    """Jobs whose id or kind is the text; all without one."""
    if text:
        try:
            return [_visible(handler, text)[0]]
        except JobNotFound:
            pass
    return _find(handler, name=text or None, limit=limit)


def _find(
    handler: Handler,
    *,
    name: str | None = None,
    state: str | None = None,
    worker: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int,
) -> Sequence[Any]:
    states = () if state is None else states_of(state)
    filter = jobs.JobFilter(
        ids=() if state is not None and not states else None,
        states=states,
        kind=name,
        worker=worker,
        enqueued_since=since,
        enqueued_until=until,
        scope=handler.person.scope,
    )
    return jobs.find_page(handler.ledger, filter, limit=limit).rows


def _sorted(matching: list[dict[str, Any]], name: str, descending: bool) -> list[dict[str, Any]]:
    if name not in ("name", "state", "received", "started"):
        raise ValueError(f"sort_by {name!r} is not one of name, state, received, started")
    return sorted(matching, key=lambda task: (task[name] is None, task[name] or 0), reverse=descending)


def _minute(name: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.strptime(text, _MINUTES).replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"{name} is not a time in UTC, such as 2030-01-31 14:05") from None
