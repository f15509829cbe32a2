"""`penstock enqueue`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

import typer

from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.options import AsJson, Imports, duration, moment
from penstock.workers.cli.common.output import echo, print_json
from penstock.workers.cli.common.session import open_settings
from penstock.workers.handlers.discovery import discover


def add_to(app: typer.Typer) -> None:
    app.command()(enqueue)


def enqueue(
    kind: Annotated[str, typer.Argument(help="The kind of job, such as email.send.")],
    fields: Annotated[
        str, typer.Argument(metavar="JSON", help="Its fields as a JSON object; - reads them from stdin.")
    ] = "{}",
    delay: Annotated[
        timedelta | None,
        typer.Option(parser=duration, metavar="DURATION", help="Run it no sooner than after this: 30s, 5m, 1h, 2d."),
    ] = None,
    run_at: Annotated[
        datetime | None, typer.Option(parser=moment, metavar="TIME", help="Run it no sooner than this ISO 8601 time.")
    ] = None,
    priority: Annotated[str | None, typer.Option(help="high, normal or low.")] = None,
    key: Annotated[str | None, typer.Option(help="A key to find it by, such as order-7.")] = None,
    tenant: Annotated[str | None, typer.Option(help="The tenant it runs for.")] = None,
    expires_in: Annotated[
        timedelta | None,
        typer.Option(parser=duration, metavar="DURATION", help="Discard it if it has not run by then."),
    ] = None,
    queue: Annotated[str | None, typer.Option(help="A queue other than its kind's.")] = None,
    unique: Annotated[
        str | None, typer.Option(help="If a job of its kind holds its key: reject, existing, replace or debounce.")
    ] = None,
    unique_for: Annotated[
        timedelta | None,
        typer.Option(parser=duration, metavar="DURATION", help="How long it holds its key, with --unique."),
    ] = None,
    debounce: Annotated[
        timedelta | None,
        typer.Option(parser=duration, metavar="DURATION", help="The quiet period of --unique debounce."),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be given repeatedly.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until it ends; the exit code is 1 unless it succeeds.")
    ] = False,
    timeout: Annotated[
        timedelta | None, typer.Option(parser=duration, metavar="DURATION", help="How long --wait waits at most.")
    ] = None,
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """Send one job and print its id. The job is checked against its kind first."""
    from penstock.config.errors import InvalidJob
    from penstock.producers import Producer
    from penstock.schemas.jobs.kind import PRIORITIES, registry

    if priority is not None and priority not in PRIORITIES:
        raise typer.BadParameter(f"priority {priority!r} is not one of {', '.join(PRIORITIES)}")
    discover(imports or ())
    definition = registry.find(kind)
    if definition is None:
        names = ", ".join(known_kind.name for known_kind in registry)
        raise InvalidJob(
            f"no imported module defines kind {kind!r} (known: {names}); import its module with --import, or name its "
            "application with --celery, --dramatiq or --rq"
        )
    options: dict[str, Any] = {
        "delay": delay,
        "run_at": run_at,
        "priority": priority,
        "key": key,
        "tenant": tenant,
        "expires_in": expires_in,
        "queue": queue,
        "unique": unique,
        "unique_for": unique_for,
        "debounce": debounce,
        "tags": tag,
    }
    with Producer.from_settings(open_settings()) as producer:
        handle = producer.enqueue(_read(definition, fields), **options)
        if not wait:
            print_json({"id": handle.id, "created": handle.created}) if as_json else echo(handle.id)
            return
        if not as_json:
            echo(handle.id)
        status = handle.wait(None if timeout is None else timeout.total_seconds())
    if as_json:
        print_json({"id": status.id, "state": status.state, "result": status.result, "error": status.error})
    else:
        echo(status.state + (f": {status.error}" if status.error else ""))
        if status.result is not None:
            print_json(status.result)
    if status.state != "succeeded":
        raise typer.Exit(FAILED)


def _read(kind: Any, fields: str) -> Any:
    """The job of a kind with these fields."""
    from pydantic import ValidationError

    from penstock.config.errors import InvalidJob
    from penstock.schemas.wire.codec import explain

    text = typer.get_text_stream("stdin").read() if fields == "-" else fields
    try:
        return kind.job.model_validate_json(text)
    except ValidationError as error:
        raise InvalidJob(f"{kind.name}: {explain(error, kind=kind)}") from error
