"""Acts of operators on queues and kinds: pause, resume, purge, move, concurrency and weight."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field
from tornado.web import HTTPError

from penstock.ledger.members import controls
from penstock.ledger.members.controls import Control, Scope, Setting
from penstock.ledger.queries.scope import matches_any
from penstock.workers.engines.celery.flower.access.people import Role
from penstock.workers.engines.celery.flower.page import Act, Parameters
from penstock.workers.fleet.waiting import move_queue, purge_queue


class Term(Parameters):
    """Reason and end of a control: a time, or minutes from now; neither: until a person ends it."""

    reason: str | None = Field(None, max_length=2000)
    minutes: float | None = Field(None, gt=0, le=60 * 24 * 366)
    until: datetime | None = None

    @property
    def end(self) -> datetime | timedelta | None:
        if self.minutes is not None:
            return timedelta(minutes=self.minutes)
        if self.until is not None and self.until.tzinfo is None:
            return self.until.replace(tzinfo=UTC)  # as the page shows times
        return self.until


class Controlling(Act):
    """An act on a queue, a kind or all, which exists for the person."""

    scope: Scope = "all"

    def checked_name(self, *path_arguments: str) -> str:
        name = path_arguments[0] if path_arguments else ""
        scope = self.person.scope
        visible = scope.includes_queue(name) if self.scope == "queue" else matches_any(name, scope.kinds)
        if self.scope != "all" and not visible:
            raise HTTPError(404)
        if scope.tenants is not None or (self.scope == "all" and scope.is_bounded):
            raise HTTPError(403, "this concerns others' jobs too")
        return name

    def pause(self, body: Term, name: str) -> dict[str, Any]:
        result = controls.pause(
            self.ledger, self.scope, name, actor=self.person.name, reason=body.reason, until=body.end
        )
        return {"message": f"Paused: {described(result)}", "until": result.until}

    def resume(self, name: str) -> dict[str, Any]:
        ended = controls.resume(self.ledger, self.scope, name, actor=self.person.name)
        return {"message": "It was not paused" if ended is None else f"Goes on: {described(ended)}"}


class PauseQueue(Controlling):
    path, scope, Body = r"/queues/([^/]+)/pause", "queue", Term

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        return self.pause(body, self.checked_name(*path_arguments))


class ResumeQueue(Controlling):
    path, scope = r"/queues/([^/]+)/resume", "queue"

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        return self.resume(self.checked_name(*path_arguments))


class PauseKind(Controlling):
    path, scope, Body = r"/kinds/([^/]+)/pause", "kind", Term

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        return self.pause(body, self.checked_name(*path_arguments))


class ResumeKind(Controlling):
    path, scope = r"/kinds/([^/]+)/resume", "kind"

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        return self.resume(self.checked_name(*path_arguments))


class PauseAll(Controlling):
    path, Body, role = r"/pause", Term, Role.ADMIN

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        return self.pause(body, self.checked_name())


class ResumeAll(Controlling):
    path, role = r"/resume", Role.ADMIN

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        return self.resume(self.checked_name())


class Purge(Controlling):
    path, scope, role = r"/queues/([^/]+)/purge", "queue", Role.ADMIN

    class Body(Parameters):
        reason: str | None = Field(None, max_length=2000)

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        queue, settings = self.checked_name(*path_arguments), self.settings_of_penstock
        done = purge_queue(settings, self.ledger, queue, actor=self.person.name, reason=body.reason)
        message = f"{done.recorded + done.unknown:,} jobs removed; {done.recorded:,} were on record, and are cancelled"
        return {"message": message, "cancelled": done.recorded, "unknown": done.unknown, "kept": done.kept}


class Move(Controlling):
    path, scope = r"/queues/([^/]+)/move", "queue"

    class Body(Parameters):
        to: str = Field(min_length=1, max_length=128)

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        queue = self.checked_name(*path_arguments)
        self.checked_name(body.to)
        done = move_queue(self.settings_of_penstock, self.ledger, queue, body.to, actor=self.person.name)
        moved = done.recorded + done.unknown
        return {"message": f"{moved:,} jobs moved to {body.to}", "moved": moved, "kept": done.kept}


class Tune(Controlling):
    path, scope = r"/queues/([^/]+)/tune", "queue"

    class Body(Parameters):
        concurrency: int | None = Field(None, ge=0)
        weight: int | None = Field(None, ge=0)
        reason: str | None = Field(None, max_length=2000)

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        queue, changes = self.checked_name(*path_arguments), []
        values: tuple[tuple[Setting, int | None], ...] = (("concurrency", body.concurrency), ("weight", body.weight))
        for what, value in values:
            if value is not None:
                controls.tune(self.ledger, queue, what, value or None, actor=self.person.name, reason=body.reason)
                changes.append(f"{what} {value or 'as the settings say'}")
        return {"message": f"Queue {queue}: {', '.join(changes) or 'nothing is changed'}"}


def described(control: Control) -> str:
    """Target of a control, with its end."""
    end = f" until {control.until:%Y-%m-%d %H:%M:%S} UTC" if control.until and control.until > datetime.now(UTC) else ""
    return control.target + end


HANDLERS = (PauseQueue, ResumeQueue, PauseKind, ResumeKind, PauseAll, ResumeAll, Purge, Move, Tune)
