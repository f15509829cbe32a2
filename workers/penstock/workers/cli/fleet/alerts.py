"""`penstock alerts`: see what is wrong, and silence it for a while."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.options import AsJson, Limit, duration, moment
from penstock.workers.cli.common.output import echo, print_rows
from penstock.workers.cli.common.session import open_ledger, open_settings

app = typer.Typer(no_args_is_help=True, help="See and silence alerts.")

_Name = Annotated[str, typer.Argument(metavar="NAME", help="As in [alerts.NAME].")]
_About = Annotated[
    str, typer.Option("--about", metavar="SUBJECT", help="Only for this queue, kind, schedule or outbox.")
]


@app.command("list")
def list_alerts(
    history: Annotated[bool, typer.Option("--history", help="List how they went, the latest first.")] = False,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List the alerts of penstock.toml: which fire, since when, and who has silenced them until when."""
    from penstock.ledger.alerts.overview import read_alerts, read_firings

    settings = open_settings()
    with open_ledger(settings) as database:
        if history:
            rows = [firing.fields() for firing in read_firings(database, limit=limit)]
        else:
            rows = [status.fields() for status in read_alerts(database, settings.alerts)]
    if history:
        columns: tuple[str, ...] = ("alert", "about", "began_at", "ended_at", "notified_at", "detail")
        print_rows(rows, columns, as_json=as_json, empty="none has fired")
    else:
        columns = ("alert", "when", "about", "state", "since", "silenced_until", "silenced_by", "detail")
        print_rows(rows, columns, as_json=as_json, empty="no alerts; see [alerts.NAME] in docs/monitoring.md")


@app.command()
def silence(
    name: _Name,
    lasting: Annotated[str | None, typer.Option("--for", metavar="DURATION", help="How long: 30m, 2h, 1d.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Until this time, as ISO 8601.")] = None,
    about: _About = "",
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why, for the others.")] = None,
    actor: Actor = None,  # type: ignore[assignment]  # its callback gives it a value
) -> None:
    """Notify no one of an alert until a time. If it still fires then, it is notified then."""
    from penstock.ledger.alerts.silences import silence as silence_alert

    if (lasting is None) == (until is None):
        raise typer.BadParameter("give --for or --until")
    end = datetime.now(UTC) + duration(lasting) if lasting is not None else moment(str(until))
    settings = open_settings()
    with open_ledger(settings) as database:
        silence_alert(database, name, until=end, actor=actor, configured=settings.alerts, subject=about, reason=reason)
    echo(f"alert {name}{f' for {about}' if about else ''} is silenced until {end:%Y-%m-%d %H:%M:%SZ}")


@app.command()
def unsilence(
    name: _Name,
    about: _About = "",
    actor: Actor = None,  # type: ignore[assignment]  # its callback gives it a value
) -> None:
    """End a silence now."""
    from penstock.ledger.alerts.silences import unsilence as unsilence_alert

    with open_ledger() as database:
        unsilence_alert(database, name, actor=actor, subject=about)
    echo(f"alert {name}{f' for {about}' if about else ''} is not silenced any more")
