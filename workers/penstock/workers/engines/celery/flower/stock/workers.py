"""Workers in Flower: known as they come, and shown within the bounds of a person."""

from __future__ import annotations

import time
from typing import Any

from flower.app import Flower
from tornado.ioloop import PeriodicCallback

from penstock.ledger.queries.scope import Scope
from penstock.workers.engines.celery.flower.access.guarded import Guarded

_LISTS = ("active", "reserved", "scheduled", "revoked")
_LOOK_MILLISECONDS = 2_000
_LIST_SECONDS = 10.0
"""How long a list of a worker's jobs is kept: it has fields of jobs, which may be erased meanwhile."""
_INSPECT_SECONDS = 5.0


class Roll:
    """Asks workers that have come for what they are, and forgets those that are gone, and their jobs.

    Arguments:
        forget_seconds: a worker without a heartbeat for so long is forgotten.
    """

    def __init__(self, flower: Flower, forget_seconds: float) -> None:
        self._flower, self._forget_seconds = flower, forget_seconds
        self._inspected_at = 0.0

    def start(self) -> None:
        PeriodicCallback(self.look, _LOOK_MILLISECONDS).start()

    def look(self) -> None:
        inspected, seen = self._flower.workers, self._flower.events.state.workers
        now = time.time()
        for name in [name for name in inspected if not self._is_there(seen.get(name), inspected[name], now)]:
            del inspected[name]
        for worker in inspected.values():
            if now - worker.get("timestamp", now) > _LIST_SECONDS:
                for part in _LISTS:
                    worker.pop(part, None)
        new = [name for name, worker in seen.items() if worker.alive and "stats" not in inspected.get(name, {})]
        if new and now - self._inspected_at > _INSPECT_SECONDS:
            self._inspected_at = now
            self._flower.update_workers()

    def _is_there(self, worker: Any, inspected: dict[str, Any], now: float) -> bool:
        last = inspected.get("timestamp", now) if worker is None else max(worker.heartbeats, default=now)
        return bool((worker is not None and worker.alive) or now - last < self._forget_seconds)


class Narrowed(Guarded):
    """In front of Flower's handlers of workers: it shows what is within the person's scope."""

    def write(self, chunk: Any) -> None:
        if isinstance(chunk, dict):
            chunk = {name: narrowed(part, self.person.scope) for name, part in chunk.items()}
        super().write(chunk)

    def render(self, template_name: str, **values: Any) -> Any:
        if "worker" in values and hasattr(self, "person"):
            values["worker"] = narrowed(values["worker"], self.person.scope)
            values["read_only"] = self.identity.reads_only(self.person)
        return super().render(template_name, **values)


def narrowed(worker: Any, scope: Scope) -> Any:
    """The answer of a worker to an inspection, without kinds, queues and jobs outside of a scope."""
    if not scope.is_bounded or not isinstance(worker, dict):
        return worker
    left = dict(worker)
    for part in _LISTS:
        if isinstance(requests := worker.get(part), list):
            left[part] = [request for request in requests if _includes(scope, request)]
    if isinstance(kinds := worker.get("registered"), list):
        left["registered"] = [
            kind for kind in kinds if Scope(kinds=scope.kinds).includes(kind.split(" ")[0], None, None)
        ]
    if isinstance(queues := worker.get("active_queues"), list):
        left["active_queues"] = [queue for queue in queues if scope.includes_queue(queue["name"])]
    if isinstance(stats := worker.get("stats"), dict):
        left["stats"] = {**stats, "total": {}, "faults": {}, "failures": {}}
    return left | ({"conf": {}} if "conf" in worker else {})


def _includes(scope: Scope, request: Any) -> bool:
    if isinstance(request, dict) and isinstance(request.get("request"), dict):
        request = request["request"]  # of a job that is not due, with its time around it
    queue = request.get("delivery_info", {}).get("routing_key") if isinstance(request, dict) else None
    return isinstance(request, dict) and scope.includes(request.get("name"), queue, None)
