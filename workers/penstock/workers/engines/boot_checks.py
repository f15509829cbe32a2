"""Boot checks: a worker refuses to start with handlers that could only fail later, in the middle of a job."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from penstock.config.errors import ConfigError, KindError
from penstock.config.settings import Settings
from penstock.config.suggestions import did_you_mean
from penstock.producers.limits.rules import Rule, Rules, store_url
from penstock.producers.senders import scheme
from penstock.schemas.jobs.kind import registry
from penstock.schemas.jobs.limits import SHARES
from penstock.workers.handlers.registry import Handler

log = logging.getLogger("penstock.worker")

_DELIVER = "webhook.deliver"
_NAMED = 10
"""Kinds that a warning names."""


def check_settings(handlers: Iterable[Handler], settings: Settings, queues: Iterable[str]) -> None:
    """Compare the declarations of kinds with the settings.

    Arguments:
        queues: consumed by the worker; kinds of other queues are not checked.

    Raises:
        KindError: a line for each kind whose declaration cannot hold; names the handler's file and the setting.
        ConfigError: no ledger is configured, or an outgoing webhook's secret cannot sign.
    """
    served = set(queues)
    checked = sorted(
        (handler for handler in handlers if handler.kind.queue in served), key=lambda handler: handler.kind.name
    )
    problems = []
    if settings.database_url.strip().lower() in ("", "none"):
        problems += [_without_ledger(handler) for handler in checked if _needs_ledger(handler)]
        if not problems:
            raise ConfigError("database_url is empty, and a worker keeps its record there; set PENSTOCK_DATABASE_URL")
    if any(handler.kind.name == _DELIVER for handler in checked):
        for name, hook in settings.hooks.items():
            hook.secrets(name)
    _warn_misspelt(settings)
    rules, store = Rules(settings), store_url(settings)
    for handler in checked:
        problems += [_wrong_limit(handler, rule, store) for rule in rules.of(handler.kind, handler.kind.queue)]
    problems = [problem for problem in problems if problem]
    if scheme(settings.broker_url) == "rabbitmq":
        limit = settings.rabbitmq_consumer_timeout_seconds
        unlimited = []
        for handler in checked:
            if handler.kind.delivery == "at_most_once":
                continue  # acknowledged before it runs
            if handler.kind.timeout is None:
                unlimited.append(handler.kind.name)
            elif handler.kind.timeout.total_seconds() >= limit:
                problems.append(_too_long(handler, limit))
        if unlimited and not problems:
            log.warning(
                "no timeout is declared for %s; RabbitMQ hands a job that runs longer than its consumer timeout "
                "(rabbitmq_consumer_timeout_seconds = %g) to another worker",
                ", ".join(unlimited),
                limit,
            )
    if problems:
        raise KindError("\n".join(problems))


def _warn_misspelt(settings: Settings) -> None:
    """Warn of kinds in the file that are nearly, but not quite, called like one of this worker's."""
    names = {name: f'[kinds."{name}"]' for name in settings.kinds}
    names |= {name: f"[limits.{limit}]" for limit, values in settings.limits.items() for name in values.kinds}
    for name, section in names.items():
        if registry.find(name) is None and (hint := did_you_mean(name, [kind.name for kind in registry])):
            log.warning("%s is for kind %r, which no module imported here defines%s", section, name, hint)


def warn_unhandled(handlers: Iterable[Handler], queues: Iterable[str], others: Mapping[str, str]) -> None:
    """Warn of queues none of whose kinds has a handler here: this worker could only hold their jobs back.

    Arguments:
        queues: consumed by the worker.
        others: kind → queue, of workers on record.
    """
    handled = {handler.kind.queue for handler in handlers}
    for queue in sorted(set(queues) - handled):
        declared = {kind.name: kind.job.__module__ for kind in registry if kind.queue == queue}
        kinds = sorted({*declared, *(kind for kind, own in others.items() if own == queue)})
        modules = ", ".join(sorted(set(declared.values())))
        which = ", ".join(kinds[:_NAMED]) if kinds else "any of its kinds"
        log.warning(
            "no module imported here has a handler for queue %s: this worker holds its jobs back for workers that "
            "have one; add --import with the module that handles %s%s, or leave the queue out",
            queue,
            which,
            f" (declared in {modules})" if modules else "",
        )


def _needs_ledger(handler: Handler) -> bool:
    return handler.kind.delivery != "at_least_once" or handler.kind.unique is not None


def _without_ledger(handler: Handler) -> str:
    kind = handler.kind
    option = f"unique={kind.unique.policy!r}" if kind.unique is not None else f"delivery={kind.delivery!r}"
    return (
        f"{handler.source}: kind {kind.name!r} with {option} needs the ledger, and database_url is empty; "
        "set PENSTOCK_DATABASE_URL"
    )


def _wrong_limit(handler: Handler, rule: Rule, store: str | None) -> str:
    """The reason why a limit cannot hold for a kind; empty: it can."""
    kind, by = handler.kind, rule.limit.by
    named = f"{handler.source}: kind {kind.name!r} has limit {rule.name!r} ({rule.text})"
    if store is None:
        return f"{named}, which is counted in Redis, and there is none; set PENSTOCK_LIMITS_URL to a redis:// URL"
    if not kind.track:
        return f"{named}, and what it holds back waits in the ledger; remove track=False, or the kind from that limit"
    if by is not None and by not in SHARES and by not in kind.job.model_fields:
        return f"{named}, and no field {by!r}; name one it has, or one of {', '.join(SHARES)}, or leave the kind out"
    return ""


def _too_long(handler: Handler, limit: float) -> str:
    seconds = 0.0 if handler.kind.timeout is None else handler.kind.timeout.total_seconds()
    return (
        f"{handler.source}: kind {handler.kind.name!r} has timeout={seconds:g}, and RabbitMQ takes a job back after "
        f"its consumer timeout of {limit:g} s; shorten it, or raise consumer_timeout in rabbitmq.conf and then "
        'rabbitmq_consumer_timeout_seconds, or declare delivery="at_most_once", which is acknowledged before it runs'
    )
