"""Functions of templates: times, durations, numbers, states and links, as people read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

from tornado.escape import xhtml_escape
from tornado.web import RequestHandler

from penstock.config.printable import printable

_STEPS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_COLOURS = {
    "success": ("succeeded", "active"),
    "primary": ("running", "firing"),
    "danger": ("dead", "failed", "wrong"),
    "warning": ("retrying", "failing", "waiting", "paused", "cancelling", "compensating"),
    "info": ("queued", "scheduled"),
}
_COLOUR = {state: colour for colour, states in _COLOURS.items() for state in states}
"""State of a job, a workflow, a step or a schedule → colour of Bootstrap; others are grey."""


class Html(bytes):
    """Text that is HTML already, which templates do not escape. It is bytes, as all text is that Tornado escapes."""

    def __new__(cls, text: str) -> Html:
        return super().__new__(cls, text.encode())


def escape(value: Any) -> bytes | str:
    """The autoescape of templates: everything but `Html`. Control characters are shown, not sent."""
    if isinstance(value, Html):
        return value
    text = value.decode() if isinstance(value, bytes) else str(value)
    return xhtml_escape(printable(text, lines=True))


def when(_: RequestHandler, time: datetime | None) -> Html:
    """A time, in UTC."""
    if time is None:
        return _missing()
    text = time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    return Html(f'<time datetime="{time.astimezone(UTC).isoformat()}" title="{text} UTC">{text}</time>')


def ago(_: RequestHandler, time: datetime | None) -> Html:
    """How long ago a time is, or in how long it will be."""
    if time is None:
        return _missing()
    seconds = (datetime.now(UTC) - time.astimezone(UTC)).total_seconds()
    text = f"{_duration(seconds)} ago" if seconds >= 0 else f"in {_duration(-seconds)}"
    exact = time.astimezone(UTC)
    return Html(f'<time datetime="{exact.isoformat()}" title="{exact:%Y-%m-%d %H:%M:%S} UTC">{text}</time>')


def duration(_: RequestHandler, value: timedelta | float | None) -> str | Html:
    """`80 ms`, `1.2 s`, `3 min 5 s`, `2 d 4 h`."""
    if value is None:
        return _missing()
    return _duration(value.total_seconds() if isinstance(value, timedelta) else value)


def count(_: RequestHandler, number: float | None) -> str | Html:
    """A number with separators of thousands."""
    if number is None:
        return _missing()
    return f"{number:,}" if isinstance(number, int) else f"{number:,.1f}"


def state_badge(_: RequestHandler, state: str) -> Html:
    """A state, in words and in a colour."""
    colour = _COLOUR.get(state, "secondary")
    name = xhtml_escape(printable(state))
    return Html(
        f'<span class="badge text-{colour}-emphasis bg-{colour}-subtle border border-{colour}-subtle">{name}</span>'
    )


def href(handler: RequestHandler, path: str, **query: Any) -> str:
    """The address of a page below Flower's prefix, with those parameters that are not None."""
    texts = {name: value for name, value in query.items() if value is not None}
    text = f"?{urlencode(texts, doseq=True)}" if texts else ""
    application: Any = handler.application
    prefix = application.options.url_prefix.strip("/")
    return f"{'/' + prefix if prefix else ''}/{path.lstrip('/')}{text}"


def api(handler: RequestHandler, path: str, **query: Any) -> str:
    """The address of an act, or of a page's JSON."""
    return href(handler, f"api/penstock/{path.lstrip('/')}", **query)


def segment(_: RequestHandler, name: str) -> str:
    """A name as one segment of an address."""
    return quote(name, safe="")


def job_link(handler: RequestHandler, job_id: str | None) -> str | Html:
    """A link to a job's page."""
    if not job_id:
        return _missing()
    id_text = xhtml_escape(printable(job_id))
    address = xhtml_escape(href(handler, f"jobs/{quote(job_id, safe='')}"))
    return Html(f'<a class="job-id" href="{address}" title="{id_text}">{id_text}</a>')


def pager(handler: RequestHandler, cursor: str | None) -> str | Html:
    """The link to the next page of a list: the same address with the parameter `cursor`. None: this is the last one."""
    texts = {
        name: [value.decode("utf-8", "replace") for value in values]
        for name, values in handler.request.query_arguments.items()
        if name != "cursor"
    }
    path = handler.request.path
    links = []
    if "cursor" in handler.request.query_arguments:
        links.append((f"{path}?{urlencode(texts, doseq=True)}", "First page"))
    if cursor is not None:
        links.append((f"{path}?{urlencode({**texts, 'cursor': cursor}, doseq=True)}", "Next page"))
    items = "".join(
        f'<li class="page-item"><a class="page-link" href="{xhtml_escape(address)}">{label}</a></li>'
        for address, label in links
    )
    return Html(f'<nav aria-label="Pages of the list"><ul class="pagination mb-0">{items}</ul></nav>') if links else ""


def table(
    _: RequestHandler, caption: str | None, *columns: str | None, region: str | None = None, hover: bool = True
) -> Callable[[bytes], Html]:
    """The frame of a table: `{% apply table("Jobs", "Kind", "Number|number") %}rows{% end %}`.

    Arguments:
        caption: for those who do not see it.
        columns: headings, each with its classes after a bar: `number`, `secondary` (not on a narrow screen), `hidden`
            (not shown, read aloud), `all` (a box that selects every row). None is left out.
        region: id of the heading that names it as a region; it scrolls by keyboard then.
        hover: whether the row under the pointer is marked.
    """
    heads = "".join(_heading(*column.partition("|")[::2]) for column in columns if column is not None)
    words = f'<caption class="visually-hidden">{xhtml_escape(caption)}</caption>' if caption else ""
    scrolls = f' tabindex="0" role="region" aria-labelledby="{xhtml_escape(region)}"' if region else ""
    start = f'<div class="table-responsive"{scrolls}><table class="table{" table-hover" if hover else ""}">{words}'
    return lambda rows: Html(f"{start}<thead><tr>{heads}</tr></thead><tbody>{rows.decode()}</tbody></table></div>")


def _heading(text: str, marks: str) -> str:
    names, text = marks.split(), xhtml_escape(text)
    if "all" in names:
        text = f'<input type="checkbox" class="form-check-input" id="job-all" aria-label="{text}">'
    if "hidden" in names:
        text = f'<span class="visually-hidden">{text}</span>'
    classes = [name for mark, name in (("number", "number"), ("secondary", "console-secondary")) if mark in names]
    styled = f' class="{" ".join(classes)}"' if classes else ""
    return f'<th scope="col"{styled}>{text}</th>'


def pretty(_: RequestHandler, value: Any) -> str:
    """A JSON value, on several lines."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def sparkline(_: RequestHandler, numbers: Sequence[int], words: str) -> Html:
    """Small bars of a series, with its words for those who do not see them."""
    most, width = max(numbers, default=0) or 1, 4
    bars = "".join(
        f'<rect x="{bar * width}" y="{20 - height}" width="{width - 1}" height="{height}"></rect>'
        for bar, number in enumerate(numbers)
        if (height := round(19 * number / most) + (number > 0))
    )
    size = len(numbers) * width
    return Html(
        f'<svg class="console-sparkline" role="img" aria-label="{xhtml_escape(words)}" width="{size}" height="20" '
        f'viewBox="0 0 {size} 20"><title>{xhtml_escape(words)}</title>{bars}</svg>'
    )


UI_METHODS = {
    function.__name__: function
    for function in (
        when,
        ago,
        duration,
        count,
        state_badge,
        href,
        api,
        segment,
        job_link,
        pager,
        table,
        pretty,
        sparkline,
    )
}
"""Tornado gives these to every template, Flower's own included."""


def _missing() -> Html:
    return Html('<span class="value-missing" title="none">—</span>')


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    rest, parts = round(seconds), []
    for size, unit in _STEPS:
        if rest >= size:
            parts.append(f"{rest // size} {unit}")
            rest %= size
    return " ".join(parts[:2])
