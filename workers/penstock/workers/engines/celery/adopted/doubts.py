"""Settings of an application that do not mean here what they mean under Celery's worker: each is named at the start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import celery

from penstock.config.settings import Settings, redact_url
from penstock.workers.engines.celery.adopted.tasks import doubts_about_rates, hard_limit, longest_limit, within

_NAMED = 10
"""Tasks that a line names."""
_POOLS = {"prefork": "processes", "processes": "processes", "threads": "threads"}


def pool_of(app: celery.Celery) -> str:
    """The pool of ours that is nearest to the application's `worker_pool`: `processes` or `threads`."""
    return _POOLS.get(str(app.conf.worker_pool), "threads")


def doubts_about(app: celery.Celery, settings: Settings) -> Iterator[str]:
    """A line for each such setting, with what happens instead."""
    conf = app.conf
    if str(conf.worker_pool) not in _POOLS:
        yield f"worker_pool = {conf.worker_pool!r}: Penstock has no such pool; its tasks run in threads, or give --pool"
    if conf.task_always_eager:
        yield "task_always_eager: tasks run where they are called, and never come to this worker; remove it"
    yield from doubts_about_rates(app, settings)
    if conf.task_acks_late is False and conf.task_acks_on_failure_or_timeout is False:
        yield "task_acks_on_failure_or_timeout = False: has no effect; a failed task is a dead letter, to be replayed"
    longest = longest_limit(settings)
    if long := sorted(name for name, task in app.tasks.items() if (hard_limit(app, task) or 0) >= longest):
        yield (
            f"time_limit of {', '.join(long[:_NAMED])}: RabbitMQ takes back what runs for its consumer timeout of "
            f"{longest:g} s, so they are ended after {within(longest):g} s; raise consumer_timeout in rabbitmq.conf, "
            "and then rabbitmq_consumer_timeout_seconds"
        )
    theirs = conf.broker_write_url or conf.broker_url
    if isinstance(theirs, str) and _address(theirs) != _address(settings.broker_url):
        yield (
            f"its broker is {redact_url(theirs)}, and Penstock's is {redact_url(settings.broker_url)}: what web "
            "processes send there is not taken in; set PENSTOCK_BROKER_URL to the same broker"
        )


def _address(url: str) -> tuple[Any, ...]:
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname in (None, "localhost") else parts.hostname
    port = parts.port or (6379 if parts.scheme.startswith("redis") else 5672)
    path = parts.path.strip("/") or ("0" if parts.scheme.startswith("redis") else "/")
    return parts.scheme.replace("pyamqp", "amqp"), host, port, path.replace("%2F", "/").replace("%2f", "/") or "/"
