"""Options that choose jobs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.schemas.states import FINAL, State
from penstock.workers.cli.common.filters import gathered
from penstock.workers.cli.common.options import past

if TYPE_CHECKING:
    from penstock.ledger.queries.jobs import JobFilter

    Filters = Callable[[], JobFilter | None]


def _time(help: str) -> Any:
    return Annotated[datetime | None, typer.Option(parser=past, metavar="AGE|TIME", help=help)]


OPTIONS: dict[str, Any] = {
    "state": Annotated[list[State] | None, typer.Option(help="Only those in this state; may be given repeatedly.")],
    "kind": Annotated[str | None, typer.Option(help="Only those of this kind.")],
    "queue": Annotated[str | None, typer.Option(help="Only those of this queue.")],
    "key": Annotated[str | None, typer.Option(help="Only those with this key.")],
    "tenant": Annotated[str | None, typer.Option(help="Only those of this tenant.")],
    "worker": Annotated[str | None, typer.Option(help="Only those that this worker runs, or ran last.")],
    "engine": Annotated[str | None, typer.Option(help="Only those that a worker of this engine runs, or ran last.")],
    "tag": Annotated[list[str] | None, typer.Option(help="Only those with this tag; several: with all of them.")],
    "field": Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="With --kind: a field that the kind declares with search=."),
    ],
    "error_class": Annotated[str | None, typer.Option(metavar="NAME", help="Only those that failed with this class.")],
    "error": Annotated[str | None, typer.Option(metavar="TEXT", help="Only those whose error contains this.")],
    "since": _time("Of ended states, such as --state dead: ended since then; else enqueued since: 1h, 2d, or a time."),
    "until": _time("Likewise: before then."),
    "enqueued_since": _time("Enqueued since then."),
    "enqueued_until": _time("Enqueued before then."),
    "finished_since": _time("Ended since then."),
    "finished_until": _time("Ended before then."),
}
"""Filter of jobs → its option."""


def with_filters(**changed: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Put the filter options where a command has its parameter `chosen`: a function that makes the filter, once kinds
    are imported, or None if no option is given.

    Arguments:
        changed: options in place of those of `OPTIONS`.
    """
    return gathered("chosen", OPTIONS | changed, lambda values: lambda: job_filter(values))


def job_filter(values: dict[str, Any]) -> JobFilter | None:
    """The filter of these options; None if none is given."""
    from penstock.ledger.queries.jobs import JobFilter

    chosen = {name: value for name, value in values.items() if value not in (None, [])}
    if not chosen:
        return None
    states = tuple(chosen.pop("state", ()))
    by = "finished" if states and FINAL.issuperset(states) else "enqueued"
    for end in ("since", "until"):
        if (time := chosen.pop(end, None)) is not None:
            chosen.setdefault(f"{by}_{end}", time)
    tags, fields = tuple(chosen.pop("tag", ())), tuple(map(_field, chosen.pop("field", ())))
    try:
        return JobFilter(states=states, tags=tags, fields=fields, **chosen)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _field(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--field")
    return name, value
