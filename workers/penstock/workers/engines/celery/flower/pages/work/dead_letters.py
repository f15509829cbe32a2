"""`/deadletters`: what waits for a decision, grouped by its error; one group; one letter; replay and discard."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from penstock.config.errors import InvalidJob, JobNotFound
from penstock.ledger.queries import dead_letters
from penstock.ledger.queries.failure_groups import TREND_HOURS, groups, trend
from penstock.ledger.queries.scope import Scope
from penstock.ledger.queries.selection import Selection
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import replay as replays
from penstock.workers.engines.celery.flower.page import Act, Edit, Page, Parameters

MOST_GROUPS, PAGE = 200, 50
MOST_AT_ONCE = 10_000
"""Dead letters that one act decides about; it says so if there may be more."""
_NAMED = 20
"""Refused ones that an answer names."""
_DECIDED: tuple[Literal["replayed", "discarded"], ...] = ("replayed", "discarded")


class Filters(Parameters):
    """A selection of dead letters, as in `penstock deadletters`."""

    reason: str | None = None
    kind: str | None = None
    queue: str | None = None
    key: str | None = None
    tenant: str | None = None
    error: str | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    decided: Literal["replayed", "discarded"] | None = None

    def selection(self, **more: Any) -> Selection:
        return Selection(**{name: getattr(self, name) for name in Filters.model_fields}, **more)


class DeadLetters(Page):
    path, name, tab, title = r"/deadletters", "deadletters", "deadletters", "Dead letters"
    template = "work/dead_letters.html"
    Query = Filters

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        matching = groups(self.ledger, query.selection(scope=self.person.scope), limit=MOST_GROUPS)
        trends = trend(self.ledger, [group.fingerprint for group in matching])
        none = [0] * TREND_HOURS
        return {"groups": [asdict(group) | {"trend": trends.get(group.fingerprint, none)} for group in matching]}


class Group(Page):
    path, name, tab, title = r"/deadletters/([0-9a-f]{1,32})", "deadletter_group", "deadletters", "Dead letters"
    template = "work/dead_letter_group.html"

    class Query(Filters):
        cursor: str | None = None

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        [fingerprint] = path_arguments
        scope = self.person.scope
        selection = query.selection(group=fingerprint, scope=scope)
        rows = dead_letters.find(self.ledger, selection, before=query.cursor, limit=PAGE + 1)
        if not rows and not _has_decided(self.ledger, fingerprint, scope):
            raise JobNotFound(f"no dead letter is in the group {fingerprint}")
        matching = groups(self.ledger, selection, limit=1)
        return {
            "fingerprint": fingerprint,
            "group": asdict(matching[0]) if matching else None,
            "trend": trend(self.ledger, [fingerprint]).get(fingerprint, [0] * TREND_HOURS) if rows else None,
            "sample": _details(dead_letters.show(self.ledger, rows[0].id, scope=scope)) if rows else None,
            "letters": [row._asdict() for row in rows[:PAGE]],
            "cursor": rows[PAGE - 1].id if len(rows) > PAGE else None,
        }


class DeadLetterPage(Page):
    path, name, tab, title = r"/deadletters/letters/([^/]+)", "deadletter", "deadletters", "Dead letter"
    template = "work/dead_letter.html"

    def read(self, query: Any, *path_arguments: str) -> dict[str, Any]:
        return {"letter": _details(dead_letters.show(self.ledger, path_arguments[0], scope=self.person.scope))}


class Choice(Filters):
    """The dead letters of an act: by their ids, or all that match."""

    ids: Annotated[tuple[str, ...], Field(max_length=MOST_AT_ONCE)] | None = None
    group: str | None = None
    everything: bool = False
    dry_run: bool = False

    def chosen(self, scope: Scope) -> Selection:
        selection = self.selection(ids=self.ids, group=self.group, scope=scope)
        if self.ids is None and not selection.filters and not self.everything:
            raise InvalidJob("give ids, a group or another filter; for all that wait, everything = true")
        return selection


class Replay(Act):
    """Run their jobs again, with failures and crashes forgotten."""

    path = r"/deadletters/replay"

    class Body(Choice):
        edit: Edit = None
        per_second: Annotated[float, Field(gt=0, le=1_000_000)] | None = None

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        decide = partial(replays.replay, edit=body.edit or None, per_second=body.per_second)
        return _decide(self, body, decide, "replayed")


class Discard(Act):
    """Close them; their jobs stay dead."""

    path = r"/deadletters/discard"

    class Body(Choice):
        why: Annotated[str, Field(min_length=1, max_length=1000)]

    def do(self, body: Any, *path_arguments: str) -> dict[str, Any]:
        return _decide(self, body, partial(replays.discard, reason=body.why), "discarded")


def _decide(act: Act, body: Any, decide: Any, word: str) -> dict[str, Any]:
    selection = body.chosen(act.person.scope)
    results = decide(act.ledger, selection, actor=act.person.name, dry_run=body.dry_run, limit=MOST_AT_ONCE)
    refused = [result for result in results if result.problem is not None]
    done = len(results) - len(refused)
    message = f"{'Would be ' if body.dry_run else ''}{word}: {done:,} of {len(results):,}"
    if len(results) == MOST_AT_ONCE:
        message += "; there may be more, do it again for them"
    if refused:
        message += f"; the first refusal: {refused[0].problem}"
    return {
        "message": message[0].upper() + message[1:],
        "dry_run": body.dry_run,
        word: done,
        "refused": [{"id": result.id, "problem": str(result.problem)} for result in refused[:_NAMED]],
    }


def _has_decided(ledger: Database, fingerprint: str, scope: Scope) -> bool:
    """Whether some were in the group that have been decided about."""
    selections = [Selection(group=fingerprint, decided=decided, scope=scope) for decided in _DECIDED]
    return any(dead_letters.find(ledger, selection, limit=1) for selection in selections)


def _details(details: dead_letters.DeadLetterDetails) -> dict[str, Any]:
    row, job = details.row._asdict(), details.job
    raw = row.pop("raw")
    tracebacks = [attempt.traceback for attempt in details.attempts if attempt.traceback]
    return {
        **row,
        "bytes": None if raw is None else len(raw),
        "headers": details.headers,
        "payload": details.payload,
        **{name: None if job is None else getattr(job, name) for name in ("state", "key", "tenant")},
        "attempts": len(details.attempts),
        "traceback": tracebacks[-1] if tracebacks else None,
        "decisions": [asdict(decision) for decision in details.decisions],
    }


HANDLERS = (DeadLetters, Group, DeadLetterPage, Replay, Discard)
