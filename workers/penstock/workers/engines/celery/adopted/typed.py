"""Tasks of an application as declarations of typed jobs, whose handlers call the tasks in place."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta
from types import CodeType
from typing import Any

import celery

from penstock.config.errors import ConfigError
from penstock.config.settings import load_settings
from penstock.schemas.jobs.declaration import LARGEST
from penstock.schemas.jobs.retry_policy import RetryPolicy
from penstock.workers.engines.celery.adopted.application import load_application
from penstock.workers.engines.celery.adopted.tasks import (
    hard_limit,
    longest_limit,
    queue_of,
    time_limits,
    written_limits_of,
)
from penstock.workers.engines.typed import Access, Declaration, Module, write_module
from penstock.workers.engines.typed.layout import text_of

_APP = "celery_app"
_CODE = f'''
{_APP}.loader.import_default_modules()  # those of its tasks


def _task(name: str) -> Any:
    """A task of the application, which this makes the current one of the thread."""
    {_APP}.set_current()
    return {_APP}.tasks[name]
'''
_TITLE = """Jobs for the Celery tasks of {name}, and handlers that call them.

`penstock adopt` has written this as a start: check the types and the retries, and change it as you like. Workers and \
dispatchers import it with --import; not together with --celery, whose kinds have the same names."""
_LONGEST_PAUSE = timedelta(hours=1)
_USES = {
    "request": "Of self.request there are only id and retries.",
    "retry": "self.retry raises its error; the policy above says whether and when it is tried again, not a countdown.",
    "replace": "self.replace does not work in place: return Discard, and send the other job with ctx.enqueue.",
    "update_state": "self.update_state writes to the application's backend; ctx.progress is what pages show.",
}
"""Attributes of a bound task that need its request, and what becomes of them."""
_HOOKS = ("before_start", "on_success", "on_failure", "on_retry", "after_return", "__call__")


def write_jobs(name: str, queues: Iterable[str] = ()) -> Module:
    """The module of typed jobs of an application.

    Arguments:
        name: as for `celery -A`: `module:app`.
        queues: those whose tasks are written; none: all.

    Raises:
        ImportFailed: it cannot be imported. ConfigError: it is not an application, has no tasks in these queues, or
            no module has it as an attribute.
    """
    app = load_application(name)
    module, attribute = _import_of(app, name)
    tasks = {task.name: queue_of(app, task) for task in app.tasks.values() if not task.name.startswith("celery.")}
    if unknown := sorted(set(queues) - set(tasks.values())):
        there = ", ".join(sorted(set(tasks.values()))) or "none"
        raise ConfigError(f"no task of {name} has queue {', '.join(unknown)}; its queues: {there}")
    chosen = [task for task in sorted(tasks) if not queues or tasks[task] in set(queues)]
    if not chosen:
        raise ConfigError(f"{name} has no tasks; name the application whose modules declare them")
    longest = longest_limit(load_settings())
    declarations = [_declare(app, app.tasks[task], longest) for task in chosen]
    access = Access(((module, attribute, _APP),), ("_task",), _CODE)
    return write_module(_TITLE.format(name=f"{module}:{attribute}"), declarations, access)


def _import_of(app: celery.Celery, name: str) -> tuple[str, str]:
    """Module and attribute of an application."""
    module, _, attribute = name.partition(":")
    top = module.partition(".")[0]
    others = sorted(key for key in sys.modules if key == top or key.startswith(f"{top}."))
    for candidate in (module, f"{module}.celery", *others):
        values = dict(vars(sys.modules[candidate])) if candidate in sys.modules else {}
        for key in (attribute, "app", "celery", *values):
            if key.isidentifier() and values.get(key) is app:
                return candidate, key
    raise ConfigError(f"{name}: no module has this application as an attribute; name one, as in shop.celery:app")


def _declare(app: celery.Celery, task: celery.Task, longest: float) -> Declaration:
    run = getattr(task, "_orig_run", task.run)
    used = _names_used(run) if not isinstance(inspect.getattr_static(task, "run", None), staticmethod) else set()
    uses = [name for name in _USES if name in used]
    hard, soft = time_limits(app, task, longest)
    access = f"_task({text_of(task.name)})"
    comments = [*(_USES[name] for name in uses), *_class_comments(task)]
    if (hard_limit(app, task) or 0) >= longest:
        comments.append(f"Its time_limit is shortened: RabbitMQ lets a job run for {longest:g} s.")
    if soft is not None:
        comments.append("At the soft limit it gets penstock.workers.SoftTimeLimitExceeded, not Celery's class.")
    if limits := written_limits_of(app, task):
        comments.append("Its rate_limit was that of each worker; the limit is that of all workers together.")
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    call = f"{access}.run"
    if uses:
        before = (f"task = {access}", "task.push_request(id=ctx.job_id, retries=ctx.attempt - 1)")
        after, call = ("task.pop_request()",), "task.run"
    return Declaration(
        name=task.name,
        queue=queue_of(app, task),
        function=run,
        call=call,
        doc=task.__doc__,
        retry=_policy(task, "retry" in uses),
        timeout=hard,
        soft_timeout=soft,
        expires_in=timedelta(seconds=task.expires) if _is_number(task.expires) else None,
        limits=limits,
        keeps_result=not task.ignore_result,
        before=before,
        after=after,
        comments=comments,
    )


def _names_used(function: Any) -> set[str]:
    """The attributes that a function uses, those of functions inside it included."""
    plain = inspect.unwrap(function)
    code = getattr(getattr(plain, "__func__", plain), "__code__", None)
    return set() if code is None else set(_attributes(code))


def _attributes(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _attributes(constant)


def _class_comments(task: celery.Task) -> list[str]:
    """Hooks that a task's class has under Celery's tracer, and that do not run here."""
    hooks = [name for name in _HOOKS if getattr(type(task), name) is not getattr(celery.Task, name)]
    return [f"Of its class these do not run: {', '.join(hooks)}."] if hooks else []


def _policy(task: celery.Task, retries_itself: bool) -> RetryPolicy:
    """The policy that does what Celery does with an error of this task."""
    errors = tuple(getattr(task, "autoretry_for", ()))
    never = tuple(getattr(task, "dont_autoretry_for", ()))
    if not errors and not retries_itself:
        return RetryPolicy(max_attempts=1)
    options = getattr(task, "retry_kwargs", None) or {}
    most = options.get("max_retries", task.max_retries)
    attempts = LARGEST if most is None else min(most + 1, LARGEST)
    backoff = float(getattr(task, "retry_backoff", False)) if errors else 0.0
    if backoff:
        policy = RetryPolicy(
            max_attempts=attempts,
            first_delay=timedelta(seconds=int(max(1.0, backoff))),
            max_delay=timedelta(seconds=int(getattr(task, "retry_backoff_max", 600))),
            **({} if getattr(task, "retry_jitter", True) else {"jitter": False}),
        )
    else:
        pause = timedelta(seconds=options.get("countdown", task.default_retry_delay) or 0)
        longest = {"max_delay": pause} if pause > _LONGEST_PAUSE else {}
        policy = RetryPolicy(max_attempts=attempts, first_delay=pause, factor=1.0, jitter=False, **longest)
    refused = {"give_up_on": never} if never else {}
    if not errors or Exception in errors:
        return policy.model_copy(update=refused)
    return RetryPolicy(max_attempts=1, **refused, by_error=dict.fromkeys(errors, policy))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
