"""`Application`: a Dramatiq application whose actors are adopted."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import dramatiq
import dramatiq.broker
from dramatiq.brokers.stub import StubBroker
from dramatiq.message import get_encoder
from dramatiq.middleware import Middleware, Retries
from dramatiq.threading import is_gevent_active

from penstock.config.errors import ConfigError
from penstock.config.settings import Settings
from penstock.producers.contrib.dramatiq import lane
from penstock.schemas.jobs.adopted import adopt_kind
from penstock.schemas.jobs.kind import Kind
from penstock.schemas.jobs.retry_policy import RetryPolicy
from penstock.workers.engines.dramatiq.adopted.job import ActorJob
from penstock.workers.engines.dramatiq.adopted.processes import start_processes
from penstock.workers.engines.dramatiq.adopted.run import ActorRunner, Stopped
from penstock.workers.engines.dramatiq.broker import PenstockBroker, get_broker
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.discovery import discover
from penstock.workers.handlers.registry import Handler, handlers

log = logging.getLogger("penstock.worker")

VARIABLE = "PENSTOCK_DRAMATIQ_MODULES"
"""Environment variable with the modules of the application, as JSON, for the children of a worker."""
_CHILD_MODULE = "penstock.workers.engines.dramatiq.adopted.child"
"""The module that a child imports to have the handlers of adopted actors."""
_SENTRYS = "sentry_sdk.integrations.dramatiq"
_NAMESPACE = "dramatiq"
_NEVER_ENDS = 2**31 - 1
_UNUSED_HOOKS = {
    "before_delay_message": "a delayed message waits in the ledger",
    "after_consumer_thread_boot": "no thread belongs to a queue",
    "before_consumer_thread_shutdown": "no thread belongs to a queue",
    "before_worker_thread_shutdown": "threads end with their process",
}


class Application(Middleware):
    """The global broker of an application, with the actors that its modules have declared.

    As middleware of the broker that hosts a worker it passes the hooks of a process and a worker on to the
    application's own middleware.

    Attributes:
        queues: of the actors, by name.
    """

    def __init__(self, broker: dramatiq.Broker, modules: Sequence[str]) -> None:
        self.broker, self.modules = broker, modules
        self.queues = sorted({actor.queue_name for actor in broker.actors.values()})
        self._runner: ActorRunner | None = None
        self._process = 0

    def declare_kinds(self) -> None:
        """Register a kind for each actor.

        Raises:
            KindError: its name or its queue cannot be a kind's; DuplicateKind: a `Job` has its name.
        """
        for actor in self.broker.actors.values():
            self._declare_kind(actor)

    def add_handlers(self, settings: Settings) -> None:
        """Register a kind with a handler for each actor, and let what the actors enqueue go to our queues.

        Raises:
            KindError: as `declare_kinds`; or a kind has a handler.
        """
        # Sentry's middleware would report each failure a second time, and take the attempts' scopes.
        self.broker.middleware = [item for item in self.broker.middleware if type(item).__module__ != _SENTRYS]
        self._warn()
        self._runner = ActorRunner(self.broker, settings)
        for actor in self.broker.actors.values():
            self.add_handler(actor)
        os.environ[VARIABLE] = json.dumps(self.modules)

    def add_handler(self, actor: dramatiq.Actor[Any, Any]) -> None:
        """Register the kind of an actor, with a handler. Raises KindError, as `add_handlers`."""
        kind, run_actor = self._declare_kind(actor), self._function(actor)
        handlers.add(Handler(kind, run_actor, "thread", "ctx", {}, termination=Stopped))

    def _declare_kind(self, actor: dramatiq.Actor[Any, Any]) -> Kind:
        job = adopt_kind(
            ActorJob,
            actor.actor_name,
            actor.fn.__module__,
            queue=actor.queue_name,
            priority=lane(actor.priority),
            retry=_policy(self.broker, actor),
        )
        return job.kind()

    def _function(self, actor: dramatiq.Actor[Any, Any]) -> Callable[..., Any]:
        # The function of a class-based actor is an object, which has no line of source.
        @functools.wraps(getattr(actor.fn, "perform", actor.fn))
        def run_actor(job: ActorJob, ctx: Context) -> Any:
            assert self._runner is not None
            if self._process != os.getpid():
                self.boot_without_worker()
            return self._runner.run(job, ctx)

        run_actor.__module__ = _CHILD_MODULE
        return run_actor

    def boot_without_worker(self) -> None:
        """Run the hooks of a process and of a worker where this is not middleware of a broker: in a child process."""
        worker = dramatiq.Worker(self.broker)
        self._boot()
        self.broker.emit_before("worker_boot", worker)
        self.broker.emit_after("worker_boot", worker)

    def _boot(self) -> None:
        self._process = os.getpid()
        dramatiq.set_broker(self.broker)
        self.broker.emit_after("process_boot")

    def after_process_boot(self, broker: dramatiq.Broker) -> None:
        self._boot()

    def before_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        self.broker.emit_before("worker_boot", worker)

    def after_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        self.broker.emit_after("worker_boot", worker)

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        self.broker.emit_before("worker_shutdown", worker)

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        self.broker.emit_after("worker_shutdown", worker)
        if self._runner is not None:
            self._runner.close()

    def _warn(self) -> None:
        """Name what differs from Dramatiq's own worker."""
        for middleware in self.broker.middleware:
            name = f"{type(middleware).__module__}.{type(middleware).__qualname__}"
            if not name.startswith("dramatiq."):
                for hook, reason in _UNUSED_HOOKS.items():
                    if getattr(type(middleware), hook, None) is not getattr(Middleware, hook):
                        log.warning("middleware %s: its hook %s is not called: %s", name, hook, reason)
        if not any(isinstance(middleware, Retries) for middleware in self.broker.middleware):
            log.warning(
                "the broker has no Retries middleware: an exception makes a dead letter at once. Dramatiq's own worker "
                "would count the message as done"
            )


def load_application(modules: Iterable[str]) -> Application:
    """Import the modules of an application, under the global broker that it sets.

    Raises:
        ImportFailed: a module raises; ConfigError: no worker of ours can run the actors, or there are none.
    """
    modules = tuple(modules)
    discover()  # handlers of packages and of Django's apps may use the broker that is global now
    if isinstance(dramatiq.broker.global_broker, PenstockBroker):
        dramatiq.broker.global_broker = None  # else an application without a broker of its own would get this one
    discover(modules)
    broker = dramatiq.broker.global_broker
    named = f"--dramatiq {' --dramatiq '.join(modules)}"
    if broker is None or not broker.actors:
        raise ConfigError(f"{named} declares no actor on Dramatiq's global broker; name the modules that have actors")
    _check(broker, modules)
    if (namespace := getattr(broker, "namespace", _NAMESPACE)) != _NAMESPACE:
        log.warning(
            "the application's RedisBroker has the namespace %r, and dispatchers look under %r only: let the processes "
            "that send call penstock.producers.contrib.dramatiq.adopt(broker)",
            namespace,
            _NAMESPACE,
        )
    return Application(broker, modules)


def adopt_actors(modules: Iterable[str], settings: Settings) -> Application:
    """Load an application and let the worker of this process run its actors. Raises as `load_application`."""
    host = get_broker()
    application = load_application(modules)
    application.add_handlers(settings)
    start_processes(application.broker)
    dramatiq.set_broker(host)
    host.add_middleware(application)
    return application


def _check(broker: dramatiq.Broker, modules: Sequence[str]) -> None:
    if isinstance(broker, StubBroker):
        raise ConfigError(
            "the application's broker is a StubBroker, whose messages stay in its process; let it set its RedisBroker "
            "or RabbitmqBroker here, as for Dramatiq's own worker"
        )
    if isinstance(broker, PenstockBroker):
        raise ConfigError("the application's broker is Penstock's own: import the module of its jobs with --import")
    if is_gevent_active():  # type: ignore[no-untyped-call]
        raise ConfigError("gevent has patched this process, and actors run in threads here; do without its patches")
    for module in modules:
        for name, value in vars(sys.modules[module]).items():
            if isinstance(value, dramatiq.Actor) and value.broker is not broker:
                raise ConfigError(
                    f"actor {module}.{name} is declared on another broker than Dramatiq's global one; call "
                    "dramatiq.set_broker before it, or leave its broker= out"
                )
    sample: dramatiq.Message[Any] = dramatiq.Message(queue_name="q", actor_name="a", args=(), kwargs={}, options={})
    try:
        json.loads(sample.encode())
    except ValueError as error:
        raise ConfigError(
            f"the application's encoder {type(get_encoder()).__name__} does not write JSON, as messages must be "
            "here; use Dramatiq's JSONEncoder, or a subclass of it"
        ) from error


def _policy(broker: dramatiq.Broker, actor: dramatiq.Actor[Any, Any]) -> RetryPolicy:
    """The policy that pages show. The middleware decides: what it does not send again is a dead letter at once."""
    retries = next((item for item in broker.middleware if isinstance(item, Retries)), None)
    if retries is None:
        return RetryPolicy(max_attempts=1, give_up_on=(Exception,))
    most = actor.options.get("max_retries", retries.max_retries)
    if actor.options.get("retry_when", retries.retry_when) is not None or most is None:
        most = _NEVER_ENDS - 1
    first, longest = (actor.options.get(name) or getattr(retries, name) for name in ("min_backoff", "max_backoff"))
    return RetryPolicy(
        max_attempts=most + 1,
        first_delay=timedelta(milliseconds=first),
        max_delay=timedelta(milliseconds=longest),
        give_up_on=(Exception,),
    )
