"""Flower's own routes, each behind a login and a role, and those that would not be true here with handlers of ours."""

from __future__ import annotations

from typing import Any

from flower.api import control, tasks, workers
from flower.urls import handlers
from flower.views.auth import LoginHandler, LogoutHandler
from flower.views.broker import BrokerView
from flower.views.error import NotFoundErrorHandler
from flower.views.monitor import Healthcheck, Metrics
from flower.views.tasks import TasksDataTable, TasksView, TaskView
from flower.views.workers import WorkerView
from tornado.web import RequestHandler, StaticFileHandler, url

from penstock.workers.engines.celery.flower.access.guarded import Guarded
from penstock.workers.engines.celery.flower.access.people import Role
from penstock.workers.engines.celery.flower.stock import acts, reading
from penstock.workers.engines.celery.flower.stock.audited import WORDS, Audited
from penstock.workers.engines.celery.flower.stock.workers import Narrowed

_OPEN = (Healthcheck, StaticFileHandler, LoginHandler, LogoutHandler)
"""Without a login."""
_OURS: dict[type[RequestHandler], type[RequestHandler]] = {
    control.TaskRevoke: acts.Revoke,
    tasks.TaskAbort: acts.Abort,
    tasks.TaskApply: acts.Apply,
    tasks.TaskAsyncApply: acts.Send,
    tasks.TaskSend: acts.Send,
    control.WorkerPoolRestart: acts.no_act("a pool is not restarted; stop the worker and start it"),
    control.WorkerPoolAutoscale: acts.no_act("a worker does not scale itself; grow or shrink its pool, or add workers"),
    control.TaskTimout: acts.no_act("a kind's timeout is declared with its message, not set on a worker"),
    control.TaskRateLimit: acts.no_act("limits are declared in penstock.toml, not set on a worker"),
    tasks.ListTasks: reading.Tasks,
    tasks.ListTaskTypes: reading.TaskTypes,
    tasks.TaskInfo: reading.TaskInfo,
    tasks.TaskResult: reading.TaskResult,
    TasksDataTable: reading.TasksTable,
    TaskView: reading.TaskPage,
}
_NARROWED = (WorkerView, workers.ListWorkers)
_WRITING = ("post", "put", "patch", "delete")


def routes(*, metrics_login: bool) -> list[Any]:
    """All routes of Flower's, its answer to unknown addresses included, to be put in front of its own.

    Arguments:
        metrics_login: whether `/metrics` asks for a login.
    """
    guarded = []
    for route in handlers:
        pattern, handler, options, name = _parts(route)
        is_open = handler in _OPEN or (handler is Metrics and not metrics_login)
        guarded.append(url(pattern, handler if is_open else _guarded(handler), options, name))
    return guarded


def _guarded(handler: type[RequestHandler]) -> type[RequestHandler]:
    if handler in _OURS:
        return _OURS[handler]
    if handler in _NARROWED:
        return type(handler.__name__, (Narrowed, handler), {})
    if handler is Metrics:
        return type(handler.__name__, (reading.ForAll, handler), {})
    if handler is TasksView:
        return type(handler.__name__, (reading.TasksPage, handler), {})
    if handler is BrokerView or handler is tasks.GetQueueLengths or handler is NotFoundErrorHandler:
        return type(handler.__name__, (Guarded, handler), {})
    if any(getattr(handler, method) is not getattr(RequestHandler, method) for method in _WRITING):
        word = WORDS.get(handler, handler.__name__[:32])  # a route of a later Flower is for admins
        role = Role.OPERATOR if handler in WORDS else Role.ADMIN
        return type(handler.__name__, (Audited, handler), {"word": word, "acting_role": role})
    return type(handler.__name__, (Guarded, handler), {})


def _parts(route: Any) -> tuple[str, Any, dict[str, Any] | None, str | None]:
    if isinstance(route, url):
        return route.regex.pattern.removesuffix("$"), route.handler_class, route.kwargs, route.name
    return route[0], route[1], route[2] if len(route) > 2 else {}, None
