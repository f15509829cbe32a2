"""`penstock pause all` and `penstock resume all`, and what the pauses of queues and kinds share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.options import duration, moment
from penstock.workers.cli.common.output import echo
from penstock.workers.cli.common.session import open_ledger

if TYPE_CHECKING:
    from penstock.ledger.members.controls import Scope


def future(text: str) -> datetime:
    """A time, or how long from now."""
    if any(mark in text for mark in "-:"):
        return moment(text)
    return datetime.now(UTC) + duration(text)


Reason = Annotated[str | None, typer.Option(metavar="TEXT", help="Why, for others who look.")]
Until = Annotated[
    datetime | None,
    typer.Option(parser=future, metavar="WHEN", help="When it ends by itself: 30m, 2h, or a time with its offset."),
]
Everything = Annotated[Literal["all"], typer.Argument(help="`all`: every queue and kind.", metavar="all")]


def add_to(root: typer.Typer) -> None:
    root.command("pause")(pause_all)
    root.command("resume")(resume_all)


def pause_all(what: Everything, reason: Reason = None, until: Until = None, actor: Actor = None) -> None:  # type: ignore[assignment]
    """Pause everything: no job of any queue begins; those that run go on. One queue or kind: see queues, kinds."""
    pause("all", "", actor, reason, until)


def resume_all(what: Everything, actor: Actor = None) -> None:  # type: ignore[assignment]
    """End the pause of everything. Queues and kinds that are paused by themselves stay paused."""
    resume("all", "", actor)


def pause(scope: Scope, name: str, actor: str, reason: str | None, until: datetime | None, note: str = "") -> None:
    from penstock.ledger.members import controls

    with open_ledger() as database:
        result = controls.pause(database, scope, name, actor=actor, reason=reason, until=until)
    end = f" until {result.until:%Y-%m-%d %H:%M:%SZ}" if result.until else ""
    echo(f"{result.target} is paused{end}; no job of it begins, within two seconds{note}")


def resume(scope: Scope, name: str, actor: str) -> None:
    """End a pause. Raises Exit if there is none."""
    from penstock.ledger.members import controls

    with open_ledger() as database:
        ended = controls.resume(database, scope, name, actor=actor)
        others = controls.in_force(database).pauses
    if ended is None:
        echo(f"penstock: {'nothing' if scope == 'all' else f'{scope} {name!r}'} is not paused by itself", err=True)
    else:
        echo(f"{ended.target} goes on; it was paused by {ended.actor}")
    if others:
        echo(f"still paused: {', '.join(pause.target for pause in others)}", err=True)
    if ended is None:
        raise typer.Exit(FAILED)
