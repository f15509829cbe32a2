"""`penstock worker` without typer, which would stay in the memory of each worker: two megabytes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from penstock.config.errors import ConfigError
from penstock.config.logging import setup_logging
from penstock.config.sections.values import listed, read_size
from penstock.config.settings import POOLS, Settings, load_settings
from penstock.schemas.jobs.kind import registry
from penstock.schemas.jobs.overrides import override_kinds
from penstock.workers.engines import preload, prepare, run_worker
from penstock.workers.engines.renewal.link import ParentLink
from penstock.workers.engines.renewal.parent import run_forking, run_parent
from penstock.workers.engines.renewal.starts import ForkedChild
from penstock.workers.engines.renewal.wear import Wear
from penstock.workers.handlers.discovery import discover, warn_idle
from penstock.workers.telemetry.failures.sentry import init_sentry
from penstock.workers.telemetry.traces.otel_setup import spans_exported

if TYPE_CHECKING:
    from penstock.workers.engines.celery.adopted.application import Application


def run(
    *,
    engine: str | None = None,
    celery: str | None = None,
    queues: str | None = None,
    concurrency: int | None = None,
    processes: int | None = None,
    pool: str | None = None,
    name: str | None = None,
    max_jobs: int | None = None,
    max_memory: int | None = None,
    log_jobs: bool | None = None,
    rq: str | None = None,
    imports: Iterable[str] = (),
    dramatiq: Sequence[str] = (),
    log_level: str = "INFO",
) -> int:
    """Run a worker until SIGTERM or Ctrl-C, then let its jobs finish. Returns the exit code.

    Arguments: the options of the command; None: the setting. Without an engine it is Celery's, or that of the actors.

    Raises:
        PenstockError: as `run_worker`; or settings, options or modules of handlers are wrong.
    """
    options = {"processes": processes, "pool": pool, "max_jobs": max_jobs, "max_memory": max_memory}
    options |= {"log_jobs": log_jobs}
    settings = load_settings()
    override_kinds(settings.kinds)
    if rq is not None and pool is None and "pool" not in settings.model_fields_set:
        options["pool"] = "processes"  # RQ's own workers run each job in a process
    settings = settings.model_copy(update={name: value for name, value in options.items() if value is not None})
    setup_logging(log_level, settings.log_format)
    parent = ParentLink.from_environment()
    several = settings.processes > 1
    if parent is None and not several and Wear.applies(settings):
        return run_parent(settings)
    if not several:
        init_sentry(settings)
    engine = engine or ("dramatiq" if dramatiq else "celery")
    prepare(engine)
    adopted = _adopt_actors(engine, dramatiq, settings) if dramatiq else []
    for module in discover(imports):
        logging.getLogger("penstock.worker").warning("%s", warn_idle(module))
    rq_queues = _adopt_rq(rq, settings) if rq is not None else []
    if celery is not None:
        application = _adopt_application(engine, celery, settings)
        adopted += application.queues
        concurrency = concurrency or application.concurrency
        if pool is None and "pool" not in settings.model_fields_set:
            settings = settings.model_copy(update={"pool": application.pool})
    if queues is not None:
        chosen = listed(queues)
    elif adopted or rq_queues:
        chosen = adopted
    else:
        named = registry.queues() | set(settings.queues)
        chosen = sorted(queue for queue in named if settings.queue(queue).engine == engine)
    chosen = list(dict.fromkeys((*chosen, *rq_queues)))
    if not chosen:
        raise ConfigError(f"no queue for engine {engine!r}: name some with --queues, or in penstock.toml")
    if several:
        preload(engine, settings, chosen)
        try:
            return run_forking(settings, settings.processes)
        except ForkedChild as child:
            parent = child.link
        init_sentry(settings)
    with spans_exported("worker"):
        return run_worker(
            engine,
            settings,
            queues=chosen,
            concurrency=concurrency,
            name=name,
            log_level=log_level.upper(),
            parent=parent,
        )


def _adopt_actors(engine: str, modules: Sequence[str], settings: Settings) -> list[str]:
    """Make jobs of the actors of a Dramatiq application. Returns their queues."""
    if engine != "dramatiq":
        raise ConfigError(f"--dramatiq runs on Dramatiq's engine, not on {engine!r}; leave --engine out")
    from penstock.workers.engines.dramatiq.adopted.application import adopt_actors

    return adopt_actors(modules, settings).queues


def _adopt_rq(queues: str, settings: Settings) -> list[str]:
    from penstock.workers.engines.rq import adopt

    return adopt(queues, settings)


def _adopt_application(engine: str, name: str, settings: Settings) -> Application:
    """Make jobs of the tasks of a Celery application."""
    if engine != "celery":
        raise ConfigError(f"--celery runs on Celery's engine, not on {engine!r}; leave --engine out")
    from penstock.workers.engines.celery.adopted.application import adopt_application

    return adopt_application(name, settings)


def parse(words: Sequence[str]) -> dict[str, Any] | None:
    """The arguments of `run`, from the command's options; None: typer is to read them, and say what is wrong."""
    options: dict[str, Any] = {name: [] for name in _REPEATED.values()}
    rest = iter(words)
    for word in rest:
        option, _, value = word.partition("=")
        if option == "--log-jobs" and word == option:
            options["log_jobs"] = True
            continue
        if word == option:
            value = next(rest, "")
        if (read := _READERS.get(option)) is None or not value or (word == option and value.startswith("-")):
            return None
        try:
            if option in _REPEATED:
                options[_REPEATED[option]].append(value)
            else:
                options[option.removeprefix("--").replace("-", "_")] = read(value)
        except ValueError:
            return None
    return options


def _number(most: int | None = None) -> Callable[[str], int]:
    def read_number(text: str) -> int:
        number = int(text)
        if number < 1 or (most is not None and number > most):
            raise ValueError
        return number

    return read_number


def _pool(text: str) -> str:
    if text not in POOLS:
        raise ValueError
    return text


def _size(text: str) -> int:
    if (size := read_size(text)) < 1:
        raise ValueError
    return size


_REPEATED = {"--import": "imports", "--dramatiq": "dramatiq"}
_READERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(
        ("--engine", "--celery", "--queues", "--name", "--rq", "--import", "--dramatiq", "--log-level"), str
    ),
    "--concurrency": _number(10_000),
    "--processes": _number(256),
    "--pool": _pool,
    "--max-jobs": _number(),
    "--max-memory": _size,
}
