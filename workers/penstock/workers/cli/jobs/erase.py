"""`penstock jobs erase`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.options import AsJson
from penstock.workers.cli.common.output import echo, print_json
from penstock.workers.cli.common.session import open_ledger, open_settings

if TYPE_CHECKING:
    from penstock.ledger.retention.erasure import Erasure


def add_to(app: typer.Typer) -> None:
    app.command()(erase)


def erase(
    where: Annotated[
        list[str],
        typer.Option("--where", metavar="FIELD=VALUE", help="key=…, tenant=… or id=…; if repeated, all must match."),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be erased.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
    actor: Actor = None,  # type: ignore[assignment]  # its callback gives it a value
) -> None:
    """Erase one person's data: jobs, attempts, results, dead letters and effects, in the ledger and the storage.

    A job that may still be in the broker leaves an empty, cancelled row. Running jobs are kept and listed: cancel
    them first.
    """
    from penstock.ledger.retention import erasure
    from penstock.producers.storage import make_storage

    chosen = _read(where, erasure.FIELDS)
    settings = open_settings()
    storage = make_storage(settings.storage_url)
    try:
        with open_ledger(settings) as database:
            if not dry_run and not yes:
                preview = erasure.erase(database, chosen, lambda: storage, actor=actor, dry_run=True)
                typer.confirm(
                    f"{_summary(preview, 'would be erased')}. This cannot be undone. Go on?", abort=True, err=True
                )
            done = erasure.erase(database, chosen, lambda: storage, actor=actor, dry_run=dry_run)
    finally:
        storage.close()
    if as_json:
        counts = {name: done.counts[name] for name in erasure.COUNTED}
        print_json({"dry_run": dry_run, "counts": counts, "running": done.running, "failed": done.failed})
    else:
        echo(_summary(done, "would be erased" if dry_run else "erased"))
    for job_id in done.running:
        echo(
            f"penstock: job {job_id} is running and was not erased; cancel it (penstock jobs cancel {job_id}) or wait",
            err=True,
        )
    for job_id in done.failed:
        echo(f"penstock: job {job_id} was not erased: its result in the storage cannot be deleted", err=True)
    if not done.log_emptied:
        echo(
            "penstock: a long read keeps what was erased in the write-ahead log of the ledger (-wal); erase again",
            err=True,
        )
    if done.running or done.failed or not done.log_emptied:
        raise typer.Exit(FAILED)


def _read(where: list[str], fields: tuple[str, ...]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for condition in where:
        name, separator, value = condition.partition("=")
        if name not in fields or not separator or not value:
            raise typer.BadParameter(f"--where {condition!r}: write {', '.join(f'{field}=VALUE' for field in fields)}")
        if name in chosen:
            raise typer.BadParameter(f"--where {name}= is given twice, and no job has two")
        chosen[name] = value
    return chosen


def _summary(done: Erasure, verb: str) -> str:
    counts = done.counts
    jobs = counts["jobs"] + counts["tombstones"]
    parts = [f"{jobs} job{'' if jobs == 1 else 's'}"]
    if counts["tombstones"]:
        parts[0] += f" ({counts['tombstones']} leave an empty row)"
    parts += [f"{counts[name]} {name}" for name in ("attempts", "effects", "dead letters", "keys") if counts[name]]
    if counts["outbox"]:
        parts.append(f"{counts['outbox']} in the outbox")
    if counts["results"]:
        parts.append(f"the stored results of {counts['results']}")
    if done.running:
        parts.append(f"not {len(done.running)} that run")
    return f"{', '.join(parts)} {verb}"
