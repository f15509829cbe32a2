"""`penstock stats`: throughput, errors and latency."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from penstock.workers.cli.common.options import AsJson, duration
from penstock.workers.cli.common.output import echo, print_json, print_rows
from penstock.workers.cli.common.session import open_ledger, open_settings

if TYPE_CHECKING:
    from penstock.ledger.queries.rates import Figures

_LONGEST = timedelta(days=366)


def add_to(root: typer.Typer) -> None:
    root.command()(stats)


def _since(text: str) -> timedelta:
    since = duration(text)
    if not timedelta(minutes=1) <= since <= _LONGEST:
        raise typer.BadParameter(f"{text!r} is not from one minute to a year; write 1h, 24h or 7d")
    return since


def stats(
    since: Annotated[
        timedelta, typer.Option(parser=_since, metavar="DURATION", help="How far back: 1h, 24h, 7d.")
    ] = "1h",  # type: ignore[assignment]  # parsed as if it were given
    by: Annotated[Literal["kind", "queue"], typer.Option(help="What a line is about.")] = "kind",
    kind: Annotated[list[str] | None, typer.Option(help="Only this kind; may be given repeatedly.")] = None,
    queue: Annotated[list[str] | None, typer.Option(help="Only this queue; may be given repeatedly.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show throughput, errors and latency by kind or queue, kinds with track=False included.

    Percentiles are within 10 %. The last ten seconds may be missing.
    """
    from penstock.ledger.queries import rates

    with open_ledger(open_settings()) as database:
        report = rates.report(database, since, kinds=kind, queues=queue)
    if as_json:
        print_json(report.plain())
        return
    figures = report.kinds if by == "kind" else report.queues
    rows = [{by: name, **_row(of)} for name, of in figures.items()]
    if len(rows) > 1:
        rows.append({by: "all", **_row(report.total)})
    columns = (
        by,
        "ended",
        "per_s",
        "errors",
        "error_rate",
        *(f"{what}_{p}" for what in ("wait", "run") for p in _SHARES),
    )
    print_rows(rows, columns, as_json=False, empty="nothing ended in this time")
    if rows:
        echo(f"from {report.since:%Y-%m-%d %H:%M} UTC; percentiles are within 10 %", err=True)


_SHARES = ("p50", "p95", "p99")


def _row(figures: Figures) -> dict[str, Any]:
    row: dict[str, Any] = {"ended": figures.ended, "per_s": f"{figures.per_second:.3g}", "errors": figures.errors}
    row["error_rate"] = None if figures.error_rate is None else f"{figures.error_rate:.1%}"
    for what, durations in (("wait", figures.wait), ("run", figures.run)):
        row |= {f"{what}_{share}": short(getattr(durations, share)) for share in _SHARES}
    return row


def short(seconds: float | None) -> str | None:
    """A duration with two digits that count, such as `0.4 ms`, `25 ms`, `1.2 s`, `14 min`, `3.1 h`."""
    if seconds is None:
        return None
    value, unit = next(
        ((seconds / length, unit) for longest, length, unit in _UNITS if seconds < longest), (seconds / 3600, "h")
    )
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"


_UNITS = ((1.0, 0.001, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min"))
"""Seconds below which a unit is used, its seconds, and its name."""
