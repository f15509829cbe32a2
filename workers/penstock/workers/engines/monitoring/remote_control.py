"""Celery's remote control over a worker of either engine: `celery inspect …`, `celery control …` and Flower's buttons.

A method per command; parameters and answers are those of `celery.worker.control`.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from penstock.config import supervision
from penstock.config.errors import ConfigError, InvalidState, JobNotFound, LedgerUnavailable
from penstock.config.settings import redact_url
from penstock.ledger.queries.status import read_status
from penstock.ledger.transitions.cancel import request_cancel
from penstock.schemas.jobs.kind import DEAD_QUEUE, DISPATCHER_QUEUE
from penstock.schemas.states import State
from penstock.schemas.wire.codec import check_text, is_id
from penstock.workers.engines.monitoring import kombu_connection
from penstock.workers.engines.monitoring.control_messages import REFUSED, count
from penstock.workers.engines.monitoring.event_messages import shorten
from penstock.workers.engines.monitoring.events import Events
from penstock.workers.engines.monitoring.rates import set_rate
from penstock.workers.engines.monitoring.requests import describe_message, describe_scheduled
from penstock.workers.engines.worker import Worker
from penstock.workers.handlers.registry import Handler, handlers

log = logging.getLogger("penstock.remote")

Answer = dict[str, Any]

_UNSEEN_KIND = "unknown"
"""The kind, in the ledger, of a job that was revoked by its id before any worker saw it."""
_INSPECTIONS = (
    *("ping", "clock", "hello", "report", "conf", "stats", "registered", "query_task"),
    *("active", "reserved", "scheduled", "revoked", "active_queues"),
    "enable_events",  # a monitor repeats it while it wants events of jobs
)
_ORDERS = (
    *("revoke", "terminate", "shutdown", "pool_grow", "pool_shrink", "add_consumer", "cancel_consumer"),
    *("disable_events", "heartbeat", "rate_limit", "time_limit", "pool_restart", "autoscale"),
)
MOST_IDS = 1000
"""The most jobs that a command may name."""
_MOST_QUEUES = 1000
_LARGEST_POOL = 10_000
_VERSIONS = ("penstock", "celery", "dramatiq", "kombu", "redis", "amqp", "sqlalchemy", "pydantic")


class Remote:
    """The commands.

    Arguments:
        shut_down: begins to drain the worker; returns at once.
    """

    def __init__(self, worker: Worker, events: Events, shut_down: Callable[[], None]) -> None:
        self.worker, self.events = worker, events
        self._shut_down = shut_down
        self._started_at = time.time()

    def commands(self) -> dict[str, Callable[..., Any]]:
        """By the names they have on the wire, as far as the setting `remote_control` allows; the others refuse."""
        mode = self.worker.settings.remote_control
        if mode == "off":
            return {}
        commands: dict[str, Callable[..., Any]] = {name: getattr(self, name) for name in _INSPECTIONS}
        commands |= {name: getattr(self, name) if mode == "all" else _refusal(name) for name in _ORDERS}
        aliases = {"active": "active", "reserved": "reserved", "schedule": "scheduled", "revoked": "revoked"}
        return commands | {f"dump_{old}": commands[new] for old, new in {**aliases, "tasks": "registered"}.items()}

    # Descriptions of the worker.

    def ping(self, **_: Any) -> Answer:
        return _ok("pong")

    def clock(self, **_: Any) -> Answer:
        return {"clock": self.events.clock.value}

    def hello(self, from_node: str, revoked: Any = None, **_: Any) -> Answer | None:
        if from_node == self.worker.name:
            return None
        return {"revoked": [], "clock": self.events.clock.forward()}

    def report(self, **_: Any) -> Answer:
        lines = [f"{name}: {number}" for name in _VERSIONS if (number := _version(name))]
        lines.append(f"python: {platform.python_version()} {platform.platform()}")
        lines += [f"{name}: {value}" for name, value in self.conf().items()]
        return _ok("\n" + "\n".join(lines) + "\n")

    def conf(self, **_: Any) -> Answer:
        settings = self.worker.settings
        return {
            "engine": self.worker.engine,
            "queues": sorted(self.worker.consumer.queues),
            "broker_url": redact_url(settings.broker_url),
            "database_url": redact_url(settings.database_url),
            **settings.model_dump(
                mode="json",
                include={
                    *("prefix", "lease_seconds", "grace_seconds", "max_crashes", "max_payload_bytes"),
                    *("pool", "max_jobs", "max_memory"),
                },
            ),
        }

    def stats(self, **_: Any) -> Answer:
        executor = self.worker.executor
        broker = kombu_connection.connection(self.worker.settings.broker_url).info()
        broker.pop("password", None)
        return {
            "total": dict(self.events.started_counts),
            "pid": os.getpid(),
            "clock": str(self.events.clock.value),
            "uptime": round(time.time() - self._started_at),
            "engine": self.worker.engine,
            "ready": self.worker.ready,
            "faults": dict(supervision.faults),
            "failures": dict(supervision.failures),
            "pool": {
                "implementation": "penstock.workers.executor.executor:Executor",
                "max-concurrency": executor.concurrency,
                "kind": self.worker.settings.pool,
                "processes": self._processes(),
                "running": len(executor.running()),
                "waiting": len(executor.waiting()),
            },
            "broker": {name: value for name, value in broker.items() if name != "alternates"},
            "prefetch_count": executor.prefetch,
            "rusage": _rusage(),
        }

    def _processes(self) -> list[int]:
        """The processes that run jobs: with the pool of processes those of it, else this one and those that kinds of
        it have chosen."""
        pool = self.worker.executor.attempts.pool
        pids = [] if pool is None else pool.pids
        return pids if self.worker.settings.pool == "processes" else [os.getpid(), *pids]

    def registered(self, taskinfoitems: Sequence[str] | None = None, builtins: bool = False, **_: Any) -> list[str]:
        by_name = sorted(handlers, key=lambda handler: handler.kind.name)
        return [_described(handler, taskinfoitems or ()) for handler in by_name]

    def active_queues(self, **_: Any) -> list[Answer]:
        from kombu.entity import Queue

        make: Any = Queue
        return [
            dict(make(name, routing_key=name).as_dict(recurse=True)) for name in sorted(self.worker.consumer.queues)
        ]

    # Its jobs.

    def active(self, safe: bool = False, **_: Any) -> list[Answer]:
        return [
            describe_message(attempt.claim.message, self.worker.name, started=attempt.claim.started_at.timestamp())
            for attempt in self.worker.executor.running()
        ]

    def reserved(self, **_: Any) -> list[Answer]:
        return [describe_message(message, self.worker.name) for message in self.worker.executor.waiting()]

    def scheduled(self, **_: Any) -> list[Answer]:
        """Jobs of its queues that wait in the ledger until they are due, the first ones; other workers of these queues
        list them, too."""
        return describe_scheduled(self.worker)

    def revoked(self, **_: Any) -> list[str]:
        """An empty list: the ledger has the cancelled jobs."""
        return []

    def query_task(self, ids: Any, **_: Any) -> Answer:
        job_ids = set(_listed(ids))
        reserved = {request["id"]: ("reserved", request) for request in self.reserved() if request["id"] in job_ids}
        waiting = [entry["request"] for entry in describe_scheduled(self.worker, job_ids)]
        scheduled = {request["id"]: ("scheduled", request) for request in waiting}
        active = {request["id"]: ("active", request) for request in self.active() if request["id"] in job_ids}
        return scheduled | reserved | active

    # Orders.

    def revoke(self, task_id: Any, terminate: bool = False, signal: str | None = None, **_: Any) -> Answer:
        """Cancel jobs that wait, and with `terminate` also jobs that run. The signal is ignored."""
        ids = _listed(task_id)
        try:
            for job_id in ids:
                self._revoke(job_id, terminate)
        except LedgerUnavailable as error:
            return _error(str(error))
        return _ok(f"{'terminate' if terminate else 'tasks flagged as revoked'}: {', '.join(ids)}")

    def terminate(self, signal: str, task_id: Any, **_: Any) -> Answer:
        return self.revoke(task_id, terminate=True)

    def _revoke(self, job_id: str, terminate: bool) -> None:
        executor, database = self.worker.executor, self.worker.database
        if any(attempt.claim.message.id == job_id for attempt in executor.running()):
            if terminate:
                executor.cancel(job_id)
            return
        status = read_status(database, job_id)
        kind = next((message.kind.name for message in executor.waiting() if message.id == job_id), None)
        if kind is None and status is not None and status.state is State.RUNNING and status.worker != self.worker.name:
            return  # that worker hears this command too
        try:
            request_cancel(database, job_id, kind=kind or _UNSEEN_KIND)
            # It may be claimed for the next slot. If it begins just now, the next beat stops it.
            executor.cancel(job_id)
        except (InvalidState, JobNotFound) as error:
            log.info("%s", error)
        else:
            self.events.revoked(job_id)

    def shutdown(self, msg: str = "shutdown asked for by remote control", **_: Any) -> None:
        log.warning("%s", shorten(str(msg)))
        self._shut_down()

    def pool_grow(self, n: int = 1, **_: Any) -> Answer:
        concurrency = self.worker.executor.concurrency + _counted(n)
        if concurrency > _LARGEST_POOL:
            return _error(f"a worker runs at most {_LARGEST_POOL} jobs at a time")
        self.worker.executor.resize(concurrency)
        return _ok("pool will grow")

    def pool_shrink(self, n: int = 1, **_: Any) -> Answer:
        self.worker.executor.resize(self.worker.executor.concurrency - _counted(n))
        return _ok("pool will shrink")

    def add_consumer(self, queue: str, **_: Any) -> Answer:
        if len(self.worker.consumer.queues) >= _MOST_QUEUES:
            return _error(f"a worker consumes at most {_MOST_QUEUES} queues")
        self.worker.orders.consume(_queue(queue))
        return _ok(f"add consumer {queue}")

    def cancel_consumer(self, queue: str, **_: Any) -> Answer:
        self.worker.orders.leave(_queue(queue))
        return _ok(f"no longer consuming from {queue}")

    def enable_events(self, **_: Any) -> Answer:
        """Send events of jobs for a minute; a monitor asks again before it is over."""
        state = "already enabled" if self.events.enabled else "enabled"
        self.events.enable()
        return _ok(f"task events {state}")

    def disable_events(self, **_: Any) -> Answer:
        state = "disabled" if self.events.enabled else "already disabled"
        self.events.disable()
        return _ok(f"task events {state}")

    def heartbeat(self, **_: Any) -> None:
        self.events.beat()

    def rate_limit(self, task_name: str, rate_limit: Any = None, **_: Any) -> Answer:
        """Set the rate of a kind that declares one, for all workers."""
        try:
            return _ok(set_rate(self.worker.database, task_name, rate_limit))
        except (ConfigError, LedgerUnavailable) as error:
            return _error(str(error))

    def time_limit(self, **_: Any) -> Answer:
        return _error("a kind's timeout is declared with its message, not set on a worker")

    def pool_restart(self, **_: Any) -> Answer:
        return _error("a pool is not restarted; stop the worker and start it again")

    def autoscale(self, **_: Any) -> Answer:
        return _error("a worker does not scale itself; use pool_grow, pool_shrink, or more workers")


def _ok(text: str) -> Answer:
    return {"ok": text}


def _error(text: str) -> Answer:
    return {"error": text}


def _refusal(name: str) -> Callable[..., Answer]:
    def refuse(**_: Any) -> Answer:
        count(REFUSED, f'{name}, because of remote_control = "inspect"')
        return _error(f'{name} is refused: this worker has remote_control = "inspect"')

    return refuse


def _listed(ids: Any) -> list[str]:
    job_ids = [ids] if isinstance(ids, str) else list(ids or ())
    if len(job_ids) > MOST_IDS:
        raise ValueError(f"{len(job_ids)} ids; a command takes at most {MOST_IDS}")
    if not all(map(is_id, job_ids)):
        raise ValueError("an id is text of 1 to 128 characters")
    return job_ids


def _counted(n: Any) -> int:
    if type(n) is not int or not 0 < n <= _LARGEST_POOL:
        raise ValueError(f"n must be a number from 1 to {_LARGEST_POOL}")
    return n


def _queue(name: Any) -> str:
    if not isinstance(name, str) or name in (DISPATCHER_QUEUE, DEAD_QUEUE):
        raise ValueError("queue must be the name of a queue of jobs")
    check_text("queue", name)
    return name


def _described(handler: Handler, items: Sequence[str]) -> str:
    kind = handler.kind
    values = {"routing_key": kind.queue, "queue": kind.queue, "version": kind.version, "timeout": kind.timeout}
    details = [f"{name}={values[name]}" for name in items if values.get(name) is not None]
    return f"{kind.name} [{' '.join(details)}]" if details else kind.name


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _rusage() -> Answer | str:
    if sys.platform == "win32":
        return "N/A"
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {name.removeprefix("ru_"): getattr(usage, name) for name in dir(usage) if name.startswith("ru_")}
