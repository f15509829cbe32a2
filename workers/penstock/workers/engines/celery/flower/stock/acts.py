"""Flower's acts on jobs, made true: revoking cancels in the ledger, sending goes through the producer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from penstock.config.errors import InvalidJob, WaitTimeout
from penstock.ledger.rows import audit
from penstock.ledger.transitions.cancel import request_cancel
from penstock.schemas.jobs.kind import Kind, registry
from penstock.schemas.states import State
from penstock.schemas.wire.codec import explain
from penstock.workers.engines.celery.flower.access.people import Role
from penstock.workers.engines.celery.flower.page import Handler
from penstock.workers.engines.celery.flower.stock.words import celery_state, shown_result

_UNSEEN_KIND = "unknown"
"""The kind, in the ledger, of a job that is cancelled by its id before any worker saw it."""
_LONGEST_WAIT = 30.0
"""Seconds that `apply` waits for a result."""
_PLAIN_OPTIONS = {"queue": "queue", "task_id": "id", "key": "key", "tenant": "tenant"}


class StockAct(Handler):
    """An act of Flower's API that needs an operator. Errors are plain text, as Flower's pages show it."""

    role = Role.OPERATOR

    def write_problem(self, text: str) -> None:
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(text)


class Revoke(StockAct):
    """`POST /api/task/revoke/ID`: cancel a job that waits, and with `terminate=true` one that runs."""

    async def post(self, job_id: str) -> None:
        terminate = self.flower_argument("terminate", False, type=bool)
        self.write_json(await self.in_thread(self._cancel, job_id, terminate))

    def _cancel(self, job_id: str, terminate: bool) -> dict[str, Any]:
        kind = self.flower_argument("kind", _UNSEEN_KIND)
        state = request_cancel(
            self.ledger, job_id, kind=kind, actor=self.person.name, scope=self.person.scope, running=terminate
        )
        if state is State.CANCELLED:
            return {"message": f"Revoked '{job_id}'", "state": state}
        return {"message": f"Asked to cancel '{job_id}', which is {state}", "state": state}


class Abort(Revoke):
    """`POST /api/task/abort/ID`: cancel a job, also one that runs."""

    async def post(self, job_id: str) -> None:
        self.write_json(await self.in_thread(self._cancel, job_id, True))


class Send(StockAct):
    """`POST /api/task/send-task/KIND` and `async-apply`: enqueue a job of a kind that the console knows."""

    async def post(self, name: str) -> None:
        self.write_json(await self.in_thread(self._send, name))

    def _send(self, name: str) -> dict[str, Any]:
        return {"task-id": self._enqueue(name, self._body()).id, "state": celery_state(State.QUEUED)}

    def _enqueue(self, name: str, body: dict[str, Any]) -> Any:
        kind = registry.find(name)
        if kind is None:
            self.refuse(f"the console knows no kind {name!r}, so no job was sent: start it with --import of its module")
            raise AssertionError
        fields, options = body.pop("kwargs", {}), self._options(body)
        queue = options.get("queue") or kind.queue
        if not self.person.scope.includes(kind.name, queue, options.get("tenant")):
            self.refuse(f"jobs of this kind, queue and tenant are not for {self.person.name}")
        job = _job(kind, fields)
        named = {name: value for name, value in options.items() if name in ("key", "tenant")}
        detail: dict[str, Any] = {"by": "flower", "queue": queue, **named}
        line: dict[str, Any] = {"act": "send", "subject_kind": "kind", "subject": kind.name, "detail": detail}
        written = self.ledger.write(lambda connection: audit.write(connection, actor=self.person.name, **line))
        try:
            handle = self.services.producer.enqueue(job, **options)
        except Exception as error:
            refused = {"refused": type(error).__name__}
            self.ledger.write(lambda connection: audit.add_detail(connection, written, refused))
            raise
        self.ledger.write(lambda connection: audit.add_detail(connection, written, {"job": handle.id}))
        return handle

    def _body(self) -> dict[str, Any]:
        try:
            body = json.loads(self.request.body or b"{}")
        except ValueError as error:
            raise InvalidJob(f"the body is not JSON: {error}") from None
        if not isinstance(body, dict) or not isinstance(body.get("kwargs", {}), dict):
            raise InvalidJob("the body is an object with the job's fields in kwargs")
        if body.pop("args", None):
            raise InvalidJob("a job has fields with names: give them in kwargs, not in args")
        return body

    @staticmethod
    def _options(body: Mapping[str, Any]) -> dict[str, Any]:
        """Celery's options as those of `enqueue`. Raises InvalidJob: an option has no meaning here."""
        options: dict[str, Any] = {}
        for name, value in body.items():
            if name in _PLAIN_OPTIONS:
                options[_PLAIN_OPTIONS[name]] = value
            elif name == "countdown":
                options["delay"] = _seconds(name, value)
            elif name == "eta":
                options["run_at"] = _time(name, value)
            elif name == "expires":
                moment = isinstance(value, str) and not value.replace(".", "", 1).isdigit()
                until = (_time(name, value) - datetime.now(UTC)).total_seconds() if moment else _seconds(name, value)
                options["expires_in"] = until
            else:
                meaningful = ", ".join(sorted((*_PLAIN_OPTIONS, "countdown", "eta", "expires")))
                raise InvalidJob(f"option {name!r} has no meaning here; there are {meaningful}")
        return options


class Apply(Send):
    """`POST /api/task/apply/KIND`: enqueue a job, and wait for its result for half a minute, or `timeout` seconds."""

    def _send(self, name: str) -> dict[str, Any]:
        body = self._body()
        timeout = _seconds("timeout", body.pop("timeout", None) or _LONGEST_WAIT)
        handle = self._enqueue(name, body)
        try:
            status = handle.wait(min(timeout, _LONGEST_WAIT))
        except WaitTimeout:
            return {"task-id": handle.id, "state": celery_state(handle.status().state)}
        return {"task-id": handle.id, "state": celery_state(status.state), **shown_result(self.ledger, handle.id)}


def no_act(reason: str) -> type[StockAct]:
    """The handler of an act of Flower's that means nothing here. It answers 403 with the reason."""

    async def post(self: StockAct, *_: str) -> None:
        self.refuse(reason)

    return type("NoAct", (StockAct,), {"post": post})


def _job(kind: Kind, fields: dict[str, Any]) -> Any:
    try:
        return kind.job.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        raise InvalidJob(f"{kind.name}: {explain(error, kind=kind)}") from None


def _seconds(name: str, value: Any) -> float:
    return float(_read(name, value, float))


def _time(name: str, value: Any) -> datetime:
    """A time in ISO 8601; in UTC if it has no zone."""

    def parse(text: Any) -> datetime:
        time = datetime.fromisoformat(text)
        return time if time.tzinfo is not None else time.replace(tzinfo=UTC)

    time: datetime = _read(name, value, parse)
    return time


def _read(name: str, value: Any, read: Callable[[Any], Any]) -> Any:
    try:
        return read(value)
    except (TypeError, ValueError):
        raise InvalidJob(f"option {name} has a wrong value: {value!r}") from None
