"""`penstock jobs explain`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.producers.senders.known_queues import KnownQueues
from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.options import AsJson, Imports
from penstock.workers.cli.common.output import echo, print_fields, print_json
from penstock.workers.cli.common.session import open_ledger, open_settings
from penstock.workers.handlers.discovery import discover

if TYPE_CHECKING:
    from penstock.producers.explain import Explanation


def add_to(app: typer.Typer) -> None:
    app.command()(explain)


def explain(
    job_id: Annotated[str | None, typer.Argument(metavar="ID", help="A job, or give --key.")] = None,
    key: Annotated[str | None, typer.Option(help="Explain which job holds this unique key, and why.")] = None,
    kind: Annotated[str | None, typer.Option(help="With --key, only the job of this kind.")] = None,
    tenant: Annotated[str | None, typer.Option(help="With --key, only the job of this tenant.")] = None,
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """Explain why a job isn't running, or how it ended, and what to do about it.

    The exit code is 1 if neither ledger nor broker knows the job, or no job has taken the key.
    """
    from penstock.ledger.queries.jobs import full_id
    from penstock.producers import explain as explaining
    from penstock.producers.explain.queue_position import open_positions
    from penstock.producers.limits import open_store

    if (job_id is None) == (key is None):
        raise typer.BadParameter("give the id of a job, or --key")
    if key is None and (kind is not None or tenant is not None):
        raise typer.BadParameter("--kind and --tenant choose among the jobs of a --key")
    discover(imports or ())
    settings = open_settings()
    timeout = settings.broker_timeout_seconds
    positions = open_positions(settings.broker_url, prefix=settings.prefix, timeout_seconds=timeout)
    limits = open_store(settings)
    explanations: list[Explanation]
    try:
        with open_ledger(settings) as database:
            queues = KnownQueues(settings, database)  # asked only for a job that the ledger does not know
            if job_id is not None:
                # The broker may know one that is not on record, by its whole id.
                job_id = full_id(database, job_id, strict=False)
                explanations = [
                    explaining.explain(database, job_id, positions, lease=settings.lease, queues=queues, limits=limits)
                ]
            else:
                explanations = explaining.explain_key(
                    database, key or "", positions, kind=kind, tenant=tenant, lease=settings.lease
                )
    finally:
        positions.close()
        if limits is not None:
            limits.close()
    if queues.trouble is not None:
        echo(f"penstock: {queues.trouble}", err=True)
    if as_json:
        documents = [asdict(explanation) for explanation in explanations]
        print_json(documents if job_id is None else documents[0])
    else:
        for number, explanation in enumerate(explanations):
            if number:
                echo()
            _print(explanation)
    if not explanations:
        echo(f"penstock: no job has taken the unique key {key!r}; see penstock jobs list --key {key}", err=True)
    if not explanations or (
        job_id is not None and explanations[0].state is None and "queue" not in explanations[0].facts
    ):
        raise typer.Exit(FAILED)


def _print(explanation: Explanation) -> None:
    echo(f"{explanation.job_id} ({explanation.state or 'not on record'}): {explanation.because}")
    if explanation.advice is not None:
        echo(f"To do: {explanation.advice}")
    if explanation.facts:
        echo()
        print_fields(explanation.facts)
