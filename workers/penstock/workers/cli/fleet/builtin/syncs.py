"""`penstock syncs`: dry runs of the syncs in penstock.toml."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.options import AsJson
from penstock.workers.cli.common.output import echo, print_rows
from penstock.workers.cli.common.session import open_settings

app = typer.Typer(no_args_is_help=True, help="Check the syncs in penstock.toml.")


@app.callback()
def _group() -> None:
    """Keeps `check` a command of its group, which has no other."""


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="NAME of [syncs.NAME].")],
    tenant: Annotated[str | None, typer.Option(help="For a sync with {tenant}.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read the first two pages of a sync and map their records, without writing. Exit code 1: a run would fail."""
    from penstock.workers.builtin.syncs.check import check_sync
    from penstock.workers.handlers.returns import Permanent

    try:
        pages = asyncio.run(check_sync(name, tenant, open_settings()))
    except Permanent as error:
        echo(f"penstock: {error}", err=True)
        raise typer.Exit(FAILED) from None
    columns = ("number", "records", "rows", "style", "missing", "new_fields", "next")
    print_rows([asdict(page) for page in pages], columns, as_json=as_json, empty="no pages")
    bad = [record for page in pages for record in page.bad]
    for record in bad:
        echo(f"penstock: bad record {record.id or record.text[:80]}: {record.reason}", err=True)
    if bad:
        raise typer.Exit(FAILED)
