"""The guard of Flower's acts: it admits those who may act, and writes them into the audit log.

Every request that may change something goes through here, also to routes that a later Flower adds: all but those that
are listed as reading.
"""

from __future__ import annotations

import asyncio
import logging
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

from flower.api import control, tasks
from flower.app import Flower, rewrite_handler
from flower.urls import handlers
from flower.views.error import NotFoundErrorHandler
from flower.views.tasks import TasksDataTable, TaskView
from flower.views.workers import WorkerView
from tornado.web import HTTPError, RequestHandler, url

from penstock.config.errors import LedgerUnavailable
from penstock.config.printable import printable
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database

log = logging.getLogger("penstock.flower")

_WRITING = ("post", "put", "patch", "delete")
_SAFE = ("GET", "HEAD", "OPTIONS")
_READING = (TasksDataTable, NotFoundErrorHandler)  # the POST of the first is a long query
_ACTS = {
    control.WorkerShutDown: ("shutdown", "worker"),
    control.WorkerPoolRestart: ("pool restart", "worker"),
    control.WorkerPoolGrow: ("pool grow", "worker"),
    control.WorkerPoolShrink: ("pool shrink", "worker"),
    control.WorkerPoolAutoscale: ("pool autoscale", "worker"),
    control.WorkerQueueAddConsumer: ("add consumer", "worker"),
    control.WorkerQueueCancelConsumer: ("cancel consumer", "worker"),
    control.TaskRevoke: ("revoke", "job"),
    control.TaskTimout: ("time limit", "kind"),
    control.TaskRateLimit: ("rate limit", "kind"),
    tasks.TaskApply: ("send", "kind"),
    tasks.TaskAsyncApply: ("send", "kind"),
    tasks.TaskSend: ("send", "kind"),
    tasks.TaskAbort: ("abort", "job"),
}
_ARGUMENTS = ("n", "min", "max", "queue", "workername", "ratelimit", "hard", "soft", "terminate", "signal")
"""Arguments of acts that the log keeps. Never those of a job."""
_LONGEST = 255


class Acts:
    """The rule and the log.

    Arguments:
        admins: users who may act; None: all who are logged in.
    """

    def __init__(self, database: Database, admins: Sequence[str] | None) -> None:
        self._database, self._admins = database, admins

    def allows(self, user: str | None) -> bool:
        return user is not None and (self._admins is None or user in self._admins)

    async def record(self, actor: str, act: str, subject_kind: str, subject: str | None, detail: Any) -> str:
        """Write the line, before the act. Returns its id."""

        def write_line(connection: Any) -> str:
            line = {"actor": actor, "act": act, "subject_kind": subject_kind, "subject": subject, "detail": detail}
            return audit.write(connection, **line)

        return await asyncio.get_running_loop().run_in_executor(None, self._database.write, write_line)

    def refused(self, line: str, status: int) -> None:
        """Add to a line that the act was not done, later."""

        def add_status() -> None:
            try:
                self._database.write(lambda connection: audit.add_detail(connection, line, {"refused": status}))
            except LedgerUnavailable as error:
                log.warning("the audit log does not say that %s was refused: %s", line, error)

        asyncio.get_running_loop().run_in_executor(None, add_status)


class Guard(RequestHandler):
    """In front of a handler of Flower's: it asks the rule, and writes the log."""

    acts: Acts
    _line: str | None = None

    async def prepare(self) -> None:
        super().prepare()
        if self.request.method in _SAFE:
            return
        user, handler = user_of(self), type(self).__mro__[2]
        act, subject_kind = _ACTS.get(handler, (handler.__name__[:32], "flower"))
        subject = self.path_args[0] if self.path_args else None
        detail = {name: value[:_LONGEST] for name in _ARGUMENTS if (value := self.get_argument(name, None)) is not None}
        if act == "revoke" and detail.get("terminate", "").lower() in ("true", "t", "yes", "y", "on", "1"):
            act = "terminate"
        actor = user or self.request.remote_ip or "unknown"
        if not self.acts.allows(user):
            refusal = printable(f"{actor} may only look in Flower and was refused: {act} {subject or ''}")
            log.warning("%s", refusal[:_LONGEST])
            raise HTTPError(403, f"{actor} may only look; see flower_admins")
        try:
            self._line = await self.acts.record(actor, act, subject_kind, subject, {"by": "flower", **detail})
        except LedgerUnavailable as error:
            log.error("an act in Flower cannot be recorded and is not done: %s", error)
            raise HTTPError(503, "the audit log cannot be written, so nothing was done") from error

    def on_finish(self) -> None:
        if self._line is not None and self.get_status() >= 400:
            self.acts.refused(self._line, self.get_status())
        super().on_finish()

    def render(self, *arguments: Any, **values: Any) -> Any:
        if "read_only" in values:  # hides the buttons
            values["read_only"] = values["read_only"] or not self.acts.allows(user_of(self))
        return super().render(*arguments, **values)


def user_of(handler: Any) -> str | None:
    """The user of basic authentication, else the address of OAuth; None without a login.

    Raises:
        HTTPError: 401, the login is wrong.
    """
    logged_in = handler.current_user
    if isinstance(logged_in, str):
        return logged_in
    if not logged_in or not handler.application.options.basic_auth:
        return None
    # Checked by Flower just now.
    return b64decode(handler.request.headers["Authorization"].split()[1]).decode().partition(":")[0]


def guard(flower: Flower, acts: Acts) -> None:
    """Put the guard in front of all of Flower's routes that change something, and of the pages that have buttons."""
    routes: list[Any] = []
    for route in handlers:
        pattern, handler = (route.regex.pattern, route.handler_class) if isinstance(route, url) else route[:2]
        writes = handler not in _READING and any(_takes(handler, method) for method in _WRITING)
        if writes or handler in (WorkerView, TaskView):
            routes.append((pattern.removesuffix("$"), type(handler.__name__, (Guard, handler), {"acts": acts})))
    prefix = flower.options.url_prefix
    flower.add_handlers(r".*", [rewrite_handler(route, prefix) for route in routes] if prefix else routes)


def _takes(handler: Any, method: str) -> bool:
    return getattr(handler, method) is not getattr(RequestHandler, method)
