"""`/limits`: which jobs hold each limit, how many wait for it, and its number, which can be set."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from tornado.web import HTTPError

from penstock.ledger.members.controls import MOST_OF_LIMIT
from penstock.producers.limits.store import LimitStore
from penstock.workers.engines.celery.flower.page import Act, Page, Parameters
from penstock.workers.engines.celery.flower.pages.fleet.controls import Term, described
from penstock.workers.fleet.limits import as_values, reset_limit, set_limit, view_limits

MOST, NAMED = 500, 20


class Limits(Page):
    path, name, tab, title = r"/limits", "limits", "limits", "Limits"
    template, needs_whole_scope = "fleet/limits.html", True  # limits count the jobs of all

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        store = self.services.limits
        if store is None:
            return {"limits": [], "more": 0, "store": False}
        views = sorted(view_limits(self.ledger, store), key=lambda view: (-view.waiting, view.limit, view.share or ""))
        rows = [
            {"limit": view.limit, "rule": view.rule, "share": view.share, "change": as_values(view.change)}
            | {"running": view.running[:NAMED], "running_count": len(view.running)}
            | {"woken": view.woken[:NAMED], "woken_count": len(view.woken), "waiting": view.waiting}
            for view in views[:MOST]
        ]
        return {"limits": rows, "more": max(len(views) - MOST, 0), "store": True}


class Change(Act):
    """An act on a limit, which counts the jobs of all."""

    @property
    def store(self) -> LimitStore:
        self.need_whole_scope()
        if (store := self.services.limits) is None:
            raise HTTPError(409, "limits need a Redis: set limits_url")
        return store


class SetLimit(Change):
    path = r"/limits/set"

    class Body(Term):
        limit: str = Field(min_length=1, max_length=255)
        share: str | None = Field(None, max_length=255)
        most: int = Field(ge=1, le=MOST_OF_LIMIT)

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        change = set_limit(
            self.ledger,
            self.store,
            body.limit,
            body.most,
            share=body.share,
            actor=self.person.name,
            reason=body.reason,
            until=body.end,
        )
        return {"message": f"{described(change)}: {change.value:,}", "until": change.until}


class ResetLimit(Change):
    path = r"/limits/reset"

    class Body(Parameters):
        limit: str = Field(min_length=1, max_length=255)
        share: str | None = Field(None, max_length=255)

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        ended = reset_limit(self.ledger, self.store, body.limit, share=body.share, actor=self.person.name)
        return {"message": "It was not set" if ended is None else f"As declared: {ended.target}"}


HANDLERS = (Limits, SetLimit, ResetLimit)
