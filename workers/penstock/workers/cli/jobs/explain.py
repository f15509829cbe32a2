"""`penstock jobs explain`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.options import AsJson, Imports
from penstock.workers.cli.common.output import print_fields, print_json
from penstock.workers.cli.common.session import open_ledger, open_settings
from penstock.workers.handlers.discovery import discover

if TYPE_CHECKING:
    from penstock.producers.explain import Explanation


def add_to(app: typer.Typer) -> None:
    app.command()(explain)


def explain(
    job_id: Annotated[str | None, typer.Argument(metavar="ID", help="A job, or give --key.")] = None,
    key: Annotated[str | None, typer.Option(help="Say which job holds this unique key, and why it still does.")] = None,
    kind: Annotated[str | None, typer.Option(help="With --key, only that of this kind.")] = None,
    tenant: Annotated[str | None, typer.Option(help="With --key, only that of this tenant.")] = None,
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """Say why a job isn't running, or what became of it, and what to do about it.

    The exit code is 1 for a job that neither ledger nor broker knows, and for a key that no job has taken.
    """
    from penstock.producers import explain as explaining
    from penstock.producers.explain.queue_position import open_positions
    from penstock.producers.limits import open_store
    from penstock.schemas.jobs.kind import registry

    if (job_id is None) == (key is None):
        raise typer.BadParameter("give the id of a job, or --key")
    if key is None and (kind is not None or tenant is not None):
        raise typer.BadParameter("--kind and --tenant choose among those of a --key")
    discover(imports or ())
    settings = open_settings()
    timeout = settings.broker_timeout_seconds
    positions = open_positions(settings.broker_url, prefix=settings.prefix, timeout_seconds=timeout)
    limits = open_store(settings)
    found: list[Explanation]
    try:
        with open_ledger(settings) as database:
            if job_id is not None:
                queues = registry.queues() | set(settings.queues)
                found = [
                    explaining.explain(database, job_id, positions, lease=settings.lease, queues=queues, limits=limits)
                ]
            else:
                found = explaining.explain_key(
                    database, key or "", positions, kind=kind, tenant=tenant, lease=settings.lease
                )
    finally:
        positions.close()
        if limits is not None:
            limits.close()
    if as_json:
        shown = [asdict(one) for one in found]
        print_json(shown if job_id is None else shown[0])
    else:
        for number, one in enumerate(found):
            if number:
                typer.echo()
            _print(one)
    if not found:
        typer.echo(f"penstock: no job has taken the unique key {key!r}; see penstock jobs list --key {key}", err=True)
    if not found or (job_id is not None and found[0].state is None and "queue" not in found[0].facts):
        raise typer.Exit(FAILED)


def _print(one: Explanation) -> None:
    typer.echo(f"{one.job_id} ({one.state or 'not on record'}): {one.because}")
    if one.advice is not None:
        typer.echo(f"To do: {one.advice}")
    if one.facts:
        typer.echo()
        print_fields(one.facts)
