"""Actors of an application as declarations of typed jobs, whose handlers call the actors' functions."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import dramatiq
from dramatiq.middleware import AgeLimit, Retries, TimeLimit

from penstock.config.errors import ConfigError
from penstock.producers.contrib.dramatiq import lane
from penstock.schemas.jobs.declaration import LARGEST
from penstock.schemas.jobs.retry_policy import RetryPolicy
from penstock.workers.engines.dramatiq.adopted.application import load_application
from penstock.workers.engines.typed import Access, Declaration, Module, write_module

_TITLE = """Jobs for the actors of {modules}, and handlers that call their functions.

`penstock adopt` has written this as a start: check the types and the retries, and change it as you like. Workers and \
dispatchers import it with --import; not together with --dramatiq, whose kinds have the same names."""


def write_jobs(modules: Sequence[str], queues: Iterable[str] = ()) -> Module:
    """The module of typed jobs of an application.

    Arguments:
        modules: that declare actors on the global broker.
        queues: those whose actors are written; none: all.

    Raises:
        ImportFailed: a module raises. ConfigError: no worker of ours can run the actors, there are none in these
            queues, or no module has one as an attribute.
    """
    application = load_application(modules)
    actors = application.broker.actors
    if unknown := sorted(set(queues) - set(application.queues)):
        raise ConfigError(f"no actor has queue {', '.join(unknown)}; their queues: {', '.join(application.queues)}")
    chosen = [actors[name] for name in sorted(actors) if not queues or actors[name].queue_name in set(queues)]
    declarations = [_declare(application.broker, actor) for actor in chosen]
    imports = [("inspect", "unwrap", "unwrap")] if any(each.is_async for each in declarations) else []
    return write_module(_TITLE.format(modules=", ".join(modules)), declarations, Access(imports))


def _declare(broker: dramatiq.Broker, actor: dramatiq.Actor[Any, Any]) -> Declaration:
    options = actor.options
    imported, call, function = _import_of(actor), "{task}.fn", actor.fn
    if isinstance(function, dramatiq.GenericActor):
        call, function = "{task}.perform", function.perform
    is_async = inspect.iscoroutinefunction(inspect.unwrap(function))
    most_time, most_age = (_milliseconds(broker, options, *limit) for limit in _LIMITS)
    priority = lane(actor.priority)
    comments = []
    if options.get("retry_when") is not None:
        comments.append("Its retry_when is not in the policy; by_error and give_up_on say what is tried again.")
    return Declaration(
        name=actor.actor_name,
        queue=actor.queue_name,
        function=function,
        call=f"unwrap({call})" if is_async else call,
        task=(*imported, f"{imported[1]}_actor"),
        doc=actor.fn.__doc__,
        retry=_policy(broker, options),
        timeout=most_time,
        expires_in=most_age,
        priority=None if priority == "normal" else priority,
        is_async=is_async,
        comments=comments,
    )


_LIMITS = ((TimeLimit, "time_limit"), (AgeLimit, "max_age"))


def _milliseconds(
    broker: dramatiq.Broker, options: dict[str, Any], middleware: type[Any], name: str
) -> timedelta | None:
    """An option of an actor, else of a middleware."""
    default = next((getattr(item, name) for item in broker.middleware if isinstance(item, middleware)), None)
    value = options.get(name) or default
    return timedelta(milliseconds=value) if isinstance(value, int | float) and value > 0 else None


def _import_of(actor: dramatiq.Actor[Any, Any]) -> tuple[str, str]:
    """Module and attribute of an actor."""
    own = actor.fn.__module__
    for key, value in vars(sys.modules[own]).items():
        if value is actor or value is actor.fn:
            return own, key
    for module, content in sorted(sys.modules.items()):
        for key, value in list(vars(content).items()):
            if value is actor:
                return module, key
    raise ConfigError(f"actor {actor.actor_name}: no module has it as an attribute; give it a name in {own}")


def _policy(broker: dramatiq.Broker, options: dict[str, Any]) -> RetryPolicy:
    retries = next((item for item in broker.middleware if isinstance(item, Retries)), None)
    if retries is None:
        return RetryPolicy(max_attempts=1)
    most = options.get("max_retries", retries.max_retries)
    first, longest = (options.get(name) or getattr(retries, name) for name in ("min_backoff", "max_backoff"))
    throws = options.get("throws") or ()
    refused = {"give_up_on": throws if isinstance(throws, tuple) else (throws,)} if throws else {}
    return RetryPolicy(
        max_attempts=LARGEST if most is None else min(most + 1, LARGEST),
        first_delay=timedelta(milliseconds=first),
        max_delay=timedelta(milliseconds=longest),
        **refused,
    )
