"""`penstock jobs`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.schemas.states import State
from penstock.workers.cli.common.options import AsJson, Imports, Limit
from penstock.workers.cli.common.output import echo, print_fields, print_json, print_rows
from penstock.workers.cli.common.session import open_ledger, open_settings
from penstock.workers.cli.jobs import acts, effects, erase, explain
from penstock.workers.cli.jobs.filters import with_filters
from penstock.workers.handlers.discovery import discover

if TYPE_CHECKING:
    from penstock.ledger.queries.jobs import JobFilter
    from penstock.producers.senders.peeks import End
    from penstock.workers.cli.jobs.filters import Filters

app = typer.Typer(no_args_is_help=True, help="See, explain, retry, cancel and erase jobs.")

COLUMNS = ("id", "kind", "queue", "state", "attempt", "enqueued_at", "due_at", "started_at", "worker", "key", "error")


@app.command("list")
@with_filters()
def list_jobs(
    *,
    chosen: Filters,
    limit: Limit = 50,
    in_broker: Annotated[
        bool, typer.Option("--in-broker", help="Those that wait in the broker and are not on record.")
    ] = False,
    oldest: Annotated[
        bool, typer.Option("--oldest", help="With --in-broker: from the other end of each lane.")
    ] = False,
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """List the jobs in the ledger, newest first: by when they were enqueued; failed ones that are chosen by their end,
    by that. With --in-broker, jobs that the ledger does not know yet; looking at them changes nothing."""
    from penstock.ledger.queries import jobs

    if imports:
        discover(imports)
    filter = chosen() or jobs.ALL
    if in_broker:
        _list_in_broker(filter, "oldest" if oldest else "newest", limit, as_json)
        return
    if oldest:
        raise typer.BadParameter("--oldest goes with --in-broker")

    def as_field(row: Any) -> dict[str, Any]:
        return {**dict(zip(jobs.LISTED, row, strict=False)), "tags": json.loads(row.tags) if row.tags else []}

    with open_ledger() as database:
        rows = jobs.each(database, filter, limit=limit)
        print_rows(map(as_field, rows), COLUMNS, as_json=as_json, empty="no jobs")


def _list_in_broker(filter: JobFilter, end: End, limit: int, as_json: bool) -> None:
    from penstock.producers.senders import open_backlogs, open_peeks
    from penstock.workers.fleet.in_broker import find_in_broker
    from penstock.workers.fleet.queues import Fleet, queue_names

    settings = open_settings()
    backlogs, peeks = open_backlogs(settings), open_peeks(settings)
    try:
        with open_ledger(settings) as database:
            waiting = backlogs.read(queue_names(settings, database, Fleet.read(database, settings.lease)))
            seen = find_in_broker(database, peeks, waiting, filter, end=end, limit=limit)
    finally:
        backlogs.close()
        if peeks is not None:
            peeks.close()
    columns = ("id", "kind", "queue", "waits_in", "priority", "tenant", "key", "age_seconds")
    print_rows(seen.rows(), columns, as_json=as_json, empty="no jobs")
    echo(
        f"penstock: {seen.waiting:,} wait in the broker, on record or not" + (f"; {seen.note}" if seen.note else ""),
        err=True,
    )


@app.command()
def show(
    job_id: Annotated[str, typer.Argument(metavar="ID")], imports: Imports = None, as_json: AsJson = False
) -> None:
    """Show one job, its attempts, and the traceback of the last one (--json: of each).

    The fields' values and the result are hidden if no imported module defines the kind.
    """
    from penstock.ledger.queries import jobs
    from penstock.schemas.jobs.kind import registry

    discover(imports or ())
    with open_ledger() as database:
        row, ran = jobs.show(database, jobs.full_id(database, job_id))
    fields: dict[str, Any] = row._asdict()
    payload = json.loads(row.payload) or {}
    fields["payload"] = registry.redact(row.kind, payload)
    fields["tags"] = json.loads(row.tags) if row.tags else []
    fields["embed"] = "present, not shown" if row.embed else None
    if row.state == State.QUEUED:
        fields["sent_at"], fields["due_at"] = row.due_at, None
    fields["result"] = None if row.result is None else registry.hide_in(row.kind, json.loads(row.result), payload)
    attempts = [attempt._asdict() for attempt in ran]
    if as_json:
        print_json(fields | {"attempts": attempts})
        return
    print_fields(fields)
    for attempt in attempts:
        echo()
        left_out = {"job_id", "number"} if attempt is attempts[-1] else {"job_id", "number", "traceback"}
        print_fields({"attempt": attempt["number"], **{k: v for k, v in attempt.items() if k not in left_out}})


# Last, so that help begins with what is needed most.
acts.add_to(app)
explain.add_to(app)
effects.add_to(app)
erase.add_to(app)
