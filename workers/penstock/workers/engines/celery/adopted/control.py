"""Remote control of an adopted application: Celery's own answers about it, and revoking, by ids and by stamps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import celery
from celery.worker import control
from celery.worker import state as worker_state
from celery.worker.control import Panel
from kombu.utils.functional import maybe_list

from penstock.schemas.jobs.adopted import AdoptedJob
from penstock.workers.engines.host import Host
from penstock.workers.engines.monitoring.remote_control import MOST_IDS


def answer_commands(app: celery.Celery, host: Host) -> None:
    """Put commands in the place of those that know only Penstock, as far as the setting `remote_control` allows."""
    mode = host.worker.settings.remote_control
    if mode == "off":
        return
    queues = [app.amqp.queues[name] for name in host.worker.queues if name in app.amqp.queues]
    state = SimpleNamespace(app=app, consumer=SimpleNamespace(task_consumer=SimpleNamespace(queues=queues)))
    about = {"conf": "dump_conf", "report": "", "registered": "dump_tasks", "active_queues": ""}
    for name, alias in about.items():
        for each in filter(None, (name, alias)):
            Panel.data[each] = partial(_answer, getattr(control, name), state)
    if mode == "all":
        _answer_revoking(state, host)


def _answer(command: Callable[..., Any], state: Any, _state: Any, **arguments: Any) -> Any:
    return command(state, **arguments)


def _answer_revoking(state: Any, host: Host) -> None:
    remote, executor = host.remote, host.worker.executor

    def revoke(_state: Any, task_id: Any, terminate: bool = False, **options: Any) -> Any:
        answer = remote.revoke(task_id, terminate, **options)
        running = {attempt.claim.message.id for attempt in executor.running()}
        if waiting := [each for each in maybe_list(task_id) or [] if each not in running]:  # type: ignore[no-untyped-call]
            control.revoke(state, waiting)
        return answer

    def revoke_by_stamped_headers(_state: Any, headers: Any, terminate: bool = False, **options: Any) -> Any:
        answer = control.revoke_by_stamped_headers(state, headers)
        if terminate:
            for attempt in executor.running():
                job = attempt.claim.message.job
                if isinstance(job, AdoptedJob) and is_revoked_by_stamp(job.request):
                    executor.cancel(attempt.claim.message.id)
        return answer

    def revoked(_state: Any, **_: Any) -> list[str]:
        return list(worker_state.revoked)

    def hello(_state: Any, from_node: str, revoked: Any = None, **_: Any) -> Any:
        """Greet a worker of Celery's that starts. The tasks that it has revoked, of many the last ones, are revoked."""
        new = [each for each in revoked or () if each not in worker_state.revoked][-MOST_IDS:]
        if from_node != host.worker.name and new:
            if "error" in (answer := remote.revoke(new)):
                return answer
            for each in new:
                worker_state.revoked.add(each)
        greeting = remote.hello(from_node)
        return greeting and greeting | {"revoked": list(worker_state.revoked)}

    commands: dict[str, Any] = {
        "hello": hello,
        "revoke": revoke,
        "revoke_by_stamped_headers": revoke_by_stamped_headers,
    }
    Panel.data.update(commands | {"revoked": revoked, "dump_revoked": revoked})


def is_revoked_by_stamp(request: Mapping[str, Any]) -> bool:
    """Whether a task with one of these stamps was revoked, since this worker started."""
    if not worker_state.revoked_stamps:
        return False
    stamps = request.get("stamps") or {}
    for name in request.get("stamped_headers") or ():
        ours, revoked = stamps.get(name), worker_state.revoked_stamps.get(name)
        if ours is None or revoked is None:
            continue
        values = ours if isinstance(ours, list | tuple) else [ours]
        if ours == revoked or any(value in maybe_list(revoked) for value in values):  # type: ignore[no-untyped-call]
            return True
    return False
