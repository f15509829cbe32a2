"""A Django project in a worker: its set-up, the modules of its apps, and the connections of its ORM.

Django closes connections around each request, and a worker has no requests: here it is done around each attempt.
Nothing of Django is imported where `DJANGO_SETTINGS_MODULE` is not set and no module of handlers sets Django up.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pkgutil
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from penstock.config.errors import ConfigError
from penstock.config.loaded import loaded

log = logging.getLogger("penstock.worker")
T = TypeVar("T")

SETTINGS = "DJANGO_SETTINGS_MODULE"
MODULES = ("jobs", "handlers")
"""Modules of an app that are imported, or packages with all that is in them."""
TASKS_MODULE = "tasks"
"""Another one, if `TASKS` has our backend. Without it Celery's tasks are in a module of this name."""
_TASKS = "penstock.producers.contrib.django.tasks"
_NOT_IMPORTED = {"__main__", "conftest", "tests"}


def set_up() -> None:
    """Set Django up, if its variable is set and no one has done so before.

    Raises:
        ConfigError: Django is not installed. Anything that the project's settings and apps raise.
    """
    settings = os.environ.get(SETTINGS)
    if not settings or is_set_up():
        return
    try:
        import django
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{SETTINGS} is {settings!r}, and Django is not installed here; install it, or unset the variable"
        ) from error
    enabled = [logger for logger in _loggers() if not logger.disabled]
    django.setup()
    for logger in enabled:
        logger.disabled = False  # LOGGING disables the loggers that exist, unless it says otherwise


def is_set_up() -> bool:
    """Whether Django is ready in this process, here or by a module of the user's."""
    apps = loaded("django.apps")
    return apps is not None and apps.apps.ready


def modules() -> Iterator[str]:
    """The names of the modules `jobs` and `handlers` of each installed app, and of all modules in such packages; also
    of `tasks`, if `TASKS` has our backend.

    The caller imports each one before it asks for the next.

    Raises:
        ConfigError: a backend of `TASKS` cannot be imported.
    """
    if not os.environ.get(SETTINGS):
        return
    from django.apps import apps
    from django.utils.module_loading import module_has_submodule

    names = (*MODULES, TASKS_MODULE) if _has_tasks() else MODULES
    for app in apps.get_app_configs():
        for name in names:
            if module_has_submodule(app.module, name):
                yield from _with_submodules(f"{app.name}.{name}")


def _has_tasks() -> bool:
    """Whether one of the backends of `TASKS` is ours, or made of it."""
    from django.conf import settings
    from django.utils.module_loading import import_string

    backends = []
    for alias, backend in (settings.TASKS if settings.is_overridden("TASKS") else {}).items():
        try:
            backends.append(import_string(backend["BACKEND"]))
        except (ImportError, KeyError) as error:
            raise ConfigError(f"TASKS[{alias!r}]: its BACKEND cannot be imported: {error}") from error
    ours = loaded(_TASKS)
    return ours is not None and any(issubclass(backend, ours.PenstockBackend) for backend in backends)


def add_task_handlers() -> None:
    """Add handlers for the tasks that modules have declared for our backend. Without that nothing is imported.

    Raises:
        KindError: the kind of one has a handler of the user's.
    """
    if loaded(_TASKS) is not None:
        from penstock.workers.handlers import django_tasks  # Django's, and only where it has tasks

        django_tasks.add_handlers()


def _with_submodules(name: str) -> Iterator[str]:
    yield name
    for child in pkgutil.iter_modules(getattr(sys.modules[name], "__path__", ())):
        if child.name not in _NOT_IMPORTED and not child.name.startswith("test_"):
            yield from _with_submodules(f"{name}.{child.name}")


def _loggers() -> list[logging.Logger]:
    return [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]


# Connections. Each thread has its own, and only that thread may close it.


def close_old_connections() -> None:
    """Close this thread's connections that failed or are older than `CONN_MAX_AGE`. Never raises.

    The next query checks a connection that stays, whatever `CONN_HEALTH_CHECKS` says: a worker may be idle for hours,
    and a server or a firewall cuts what is idle.
    """
    from django.db import connections

    for connection in connections.all(initialized_only=True):
        try:
            connection.queries_log.clear()  # of DEBUG, which keeps every query
            connection.health_check_enabled = True
            connection.close_if_unusable_or_obsolete()
        except Exception as error:
            log.warning("the connection to database %r did not close in order: %s", connection.alias, error)
        if connection.closed_in_transaction:
            # Of an `atomic` that never ended: Django would refuse every query of this thread from now on.
            del connections[connection.alias]


@contextlib.contextmanager
def old_connections_closed() -> Iterator[None]:
    """Close old connections before and after the block; without Django do nothing."""
    if not is_set_up():
        yield
        return
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


def _keep_caches_by_thread() -> None:
    """Have a thread keep its clients of caches, as it keeps its databases. In the context of an attempt each attempt
    would connect again, and the sockets would stay until a garbage collection."""
    from asgiref.local import Local
    from django.core.cache import caches

    if not caches.thread_critical:
        caches.thread_critical, caches._connections = True, Local(thread_critical=True)


class CoroutineThreads:
    """Threads for the ORM's calls of coroutines, one for each coroutine that makes any.

    `sync_to_async`, and with it the asynchronous ORM, would otherwise run all calls of a process in one thread, where
    a slow query of one job holds up the others.
    """

    def __init__(self) -> None:
        self._idle: list[_CoroutineThread] = []
        _keep_caches_by_thread()

    async def run(self, work: Awaitable[T]) -> T:
        """Await `work` in the current task, whose context must be its own."""
        from asgiref.sync import SyncToAsync, ThreadSensitiveContext
        from django.core.cache import caches

        thread = self._idle.pop() if self._idle else _CoroutineThread()
        context = ThreadSensitiveContext()
        # What entering the context does; to leave it would wait for a query that hangs.
        SyncToAsync.thread_sensitive_context.set(context)
        SyncToAsync.context_to_thread_executor[context] = thread
        for alias, cache in thread.caches.items():
            caches[alias] = cache
        try:
            return await work
        finally:
            thread.caches = {alias: caches[alias] for alias in caches if hasattr(caches._connections, alias)}
            SyncToAsync.context_to_thread_executor.pop(context, None)
            thread.end(self._idle.append)


class _CoroutineThread(ThreadPoolExecutor):
    """A thread that one attempt at a time uses, if at all: then old connections are closed before and afterwards.

    Attributes:
        caches: clients of caches by alias, of the attempts that had this thread.
    """

    def __init__(self) -> None:
        super().__init__(1, "django")
        self.caches: dict[str, Any] = {}
        self._used = False

    def submit(self, function: Callable[..., T], /, *args: Any, **arguments: Any) -> Future[T]:
        if not self._used:
            self._used = True
            super().submit(close_old_connections)
        return super().submit(function, *args, **arguments)

    def end(self, give_back: Callable[[_CoroutineThread], None]) -> None:
        """Give it back once its last call has ended, which may hang while its attempt has timed out."""
        if not self._used:
            give_back(self)
            return
        self._used = False
        super().submit(close_old_connections).add_done_callback(lambda _: give_back(self))
