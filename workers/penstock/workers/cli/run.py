"""The commands that keep running: `worker`, `dispatcher`, `up`, `demo`, `flower`; and `probe`, which asks them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.config.settings import WorkerPool
from penstock.workers.cli.common.options import Actors, CeleryApp, Imports, LogLevel, size
from penstock.workers.cli.common.session import open_settings
from penstock.workers.handlers.discovery import discover

Rq = Annotated[
    str | None,
    typer.Option(metavar="QUEUES", help="RQ's queues to take over, as high,default; this reads RQ's pickles."),
]


def add_to(app: typer.Typer) -> None:
    for command in (up, demo, worker, dispatcher, flower, probe):
        app.command()(command)


def worker(
    engine: Annotated[
        str | None, typer.Option(help="celery or dramatiq; if not given, celery, or that of the application.")
    ] = None,
    celery: CeleryApp = None,
    queues: Annotated[
        str | None,
        typer.Option(help="Queues to consume, as a,b; if not given, all that penstock.toml gives to this engine."),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1, max=10_000, help="Jobs at a time; if not given, the setting of its queues in penstock.toml."
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, help="Processes, each with that many jobs at a time; if not given, the setting processes."
        ),
    ] = None,
    pool: Annotated[
        WorkerPool | None,
        typer.Option(
            help="Where plain functions run: in threads (async is the same), or in as many processes as jobs run at a "
            "time; if not given, the setting pool.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The worker's name; it must be unique.")] = None,
    max_jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Jobs after which the process, or one of the pool, is replaced; if not given, the setting max_jobs.",
        ),
    ] = None,
    max_memory: Annotated[
        int | None,
        typer.Option(
            parser=size,
            metavar="SIZE",
            help="Memory, as 512MB or 1GiB, over which the process is replaced; if not given, the setting max_memory.",
        ),
    ] = None,
    log_jobs: Annotated[
        bool | None,
        typer.Option("--log-jobs", help="Log each job's start and end, too; if not given, the setting log_jobs."),
    ] = None,
    rq: Rq = None,
    imports: Imports = None,
    dramatiq: Actors = None,
    log_level: LogLevel = "INFO",
) -> None:
    """Run a worker until SIGTERM or Ctrl-C, then let its jobs finish."""
    # The console script runs `worker` without this module, if all is well with its options.
    from penstock.workers.engines.command import run

    code = run(
        engine=engine,
        celery=celery,
        queues=queues,
        concurrency=concurrency,
        processes=processes,
        pool=pool,
        name=name,
        max_jobs=max_jobs,
        max_memory=max_memory,
        log_jobs=log_jobs,
        rq=rq,
        imports=imports or (),
        dramatiq=dramatiq or (),
        log_level=log_level,
    )
    raise typer.Exit(code)


def dispatcher(
    celery: CeleryApp = None,
    rq: Rq = None,
    imports: Imports = None,
    dramatiq: Actors = None,
    log_level: LogLevel = "INFO",
) -> None:
    """Run the dispatcher: delayed jobs, retries, schedules, jobs of unmodified clients. Several may run."""
    from penstock.config.logging import setup_logging
    from penstock.workers.dispatcher.dispatcher import run_dispatcher
    from penstock.workers.telemetry.failures.sentry import init_sentry
    from penstock.workers.telemetry.traces.otel_setup import spans_exported

    settings = open_settings()
    setup_logging(log_level, settings.log_format)
    init_sentry(settings)
    if dramatiq:
        from penstock.workers.engines.dramatiq.adopted.application import load_application

        load_application(dramatiq).declare_kinds()
    discover(imports or ())
    others = []
    if rq is not None:
        from penstock.workers.engines.rq import open_intake

        others.append(open_intake(rq))
    if celery is not None:
        from penstock.workers.engines.celery.adopted.application import adopt_application

        application = adopt_application(celery, settings, sends=False)
        others += application.services
        settings = settings.model_copy(update={"stock_queues": (*settings.stock_queues, *application.queues)})
    with spans_exported("dispatcher"):
        code = run_dispatcher(settings, others)
    raise typer.Exit(code)


def up(
    folder: Annotated[Path, typer.Option(help="The folder for all data.")] = Path("var"), imports: Imports = None
) -> None:
    """Start everything on this machine: a Redis, workers, dispatcher, gateway and Flower. Ctrl-C stops it."""
    from penstock.workers.local.up.command import run_up

    raise typer.Exit(run_up(folder=folder, imports=tuple(imports or ())))


def demo(keep: Annotated[bool, typer.Option("--keep", help="Leave it running afterwards.")] = False) -> None:
    """Run everything for about a minute on real input, and check the results."""
    from penstock.workers.local.demo.command import run_demo

    raise typer.Exit(run_demo(keep=keep))


def flower(
    address: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 5555,
    basic_auth: Annotated[
        str | None,
        typer.Option(metavar="USER:PASSWORD", help="The login; safer as the variable PENSTOCK_FLOWER_BASIC_AUTH."),
    ] = None,
    url_prefix: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The path of its pages behind a proxy, as flower; if not given, the root."),
    ] = None,
    imports: Imports = None,
) -> None:
    """Run Flower for the workers of both engines."""
    from penstock.workers.engines.celery.flower.server import run_flower

    raise typer.Exit(run_flower(address, port, basic_auth, url_prefix=url_prefix, imports=imports or ()))


def probe(
    question: Annotated[str, typer.Argument(help="live or ready.")],
    name: Annotated[str | None, typer.Option(help="Only the process with this name.")] = None,
    pid: Annotated[int | None, typer.Option(help="Only this process.")] = None,
    role: Annotated[str | None, typer.Option(help="Only these: worker or dispatcher.")] = None,
    prefix: Annotated[
        str | None, typer.Option(envvar="PENSTOCK_PREFIX", help="Only those of this installation.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answers.")] = 2.0,
) -> None:
    """Ask the workers and dispatchers of this machine whether they make progress or take jobs: 1 if not all."""
    # The console script runs `probe` without this module, which loads too much for a probe.
    from penstock.config.process.probe import QUESTIONS, ROLES, run

    for value, choices in ((question, QUESTIONS), (role, (None, *ROLES))):
        if value not in choices:
            raise typer.BadParameter(f"{value!r}: use {' or '.join(filter(None, choices))}")
    raise typer.Exit(run(question, name=name, pid=pid, role=role, prefix=prefix, timeout_seconds=timeout))
