"""Acts: all that the audit log has, `penstock jobs cancel` and `reschedule`, and `penstock enqueue --unique`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest
import typer
from support.ledgers import Note, claimed, end, message, row_of, start_worker
from support.workflows import jobs as acme
from support.workflows.drive import move, start

from penstock.ledger.effects import begin
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.schemas import Outcome, State
from penstock.workers.cli import app

Run = Callable[..., Any]
HOUR = timedelta(hours=1)


def retrying(ledger: Database, **options: Any) -> str:
    sent = message(Note(), **options)
    end(ledger, claimed(ledger, sent), Outcome.RETRY, error="no", due_at=datetime.now(UTC) + HOUR)
    return sent.id


def running(ledger: Database, **options: Any) -> str:
    sent = message(Note(), **options)
    claimed(ledger, sent)
    return sent.id


def test_jobs_are_cancelled_by_their_key_and_who_did_it_is_on_record(penstock: Run, ledger: Database) -> None:
    waits, runs, other = retrying(ledger, key="k"), running(ledger, key="k"), retrying(ledger, key="other")
    result = penstock("jobs", "cancel", "--key", "k", "--kind", "ledger.note", "--actor", "ada")
    assert (result.code, sorted(result.out.split())) == (0, sorted([waits, runs]))
    assert row_of(ledger, waits).state == State.CANCELLED
    assert row_of(ledger, runs).cancel_requested
    assert row_of(ledger, other).state == State.RETRYING
    [act] = audit.find(ledger)
    assert (act.actor, act.act, act.count, act.detail) == ("ada", "cancel", 2, {"key": "k", "kind": "ledger.note"})
    assert [entry.id for entry in audit.find(ledger, subject=runs)] == [act.id]
    assert penstock("jobs", "cancel", "--key", "nobody's", "--actor", "ada").code == 0
    assert len(audit.find(ledger)) == 2  # it holds for what comes out of the broker
    penstock("jobs", "cancel", other, "--actor", "bob")
    assert audit.find(ledger, actor="bob")[0].subject == other


def test_all_jobs_that_match_are_cancelled_after_a_look_at_their_number(penstock: Run, ledger: Database) -> None:
    ours, other = [retrying(ledger, tenant="acme") for _ in range(3)], retrying(ledger, tenant="other")
    chosen = ("jobs", "cancel", "--tenant", "acme", "--state", "retrying")
    assert "would be cancelled or asked to stop: 3" in penstock(*chosen, "--dry-run").err
    unconfirmed = penstock(*chosen)
    assert (unconfirmed.code, "--yes" in unconfirmed.err) == (2, True)
    assert {row_of(ledger, id).state for id in ours} == {State.RETRYING}
    assert "cancelled or asked to stop: 3" in penstock(*chosen, "--yes", "--actor", "ada").err
    assert {row_of(ledger, id).state for id in ours} == {State.CANCELLED}
    assert row_of(ledger, other).state == State.RETRYING
    [act] = audit.find(ledger)
    assert (act.actor, act.act, act.count) == ("ada", "cancel", 3)
    assert "on record; others" in penstock("jobs", "cancel", "--key", "k").err


def test_an_id_may_be_shortened_unless_several_jobs_begin_so(penstock: Run, ledger: Database) -> None:
    first, second = (f"0192aaaa-{number}000-7000-8000-000000000001" for number in (1, 2))
    for id in (first, second):
        retrying(ledger, id=id)
    result = penstock("jobs", "cancel", "0192aaaa")
    assert (result.code, "2 jobs have ids that begin" in result.err) == (1, True)
    assert second in penstock("jobs", "show", "0192aaaa-2").out
    assert penstock("jobs", "cancel", "0192aaaa-1", "--actor", "ada").code == 0
    assert (row_of(ledger, first).state, row_of(ledger, second).state) == (State.CANCELLED, State.RETRYING)
    assert penstock("jobs", "list", "--json", "--state", "dead", "--since", "1h").json == []


def test_waiting_jobs_are_rescheduled_by_id_and_by_key(penstock: Run, ledger: Database) -> None:
    first, second, runs = retrying(ledger, key="k"), retrying(ledger, key="k"), running(ledger)
    result = penstock("jobs", "reschedule", first, "--at", "2031-01-01T00:00+01:00", "--actor", "ada")
    assert (result.code, row_of(ledger, first).due_at) == (0, datetime(2030, 12, 31, 23, tzinfo=UTC))
    result = penstock("jobs", "reschedule", "--key", "k", "--in", "2h", "--actor", "ada")
    assert sorted(result.out.split()) == sorted([first, second])
    assert HOUR < row_of(ledger, first).due_at - datetime.now(UTC) <= 2 * HOUR
    result = penstock("jobs", "reschedule", second, runs, "--in", "0")
    assert result.code == 1
    assert f"job {runs} is running" in result.err
    assert row_of(ledger, second).due_at <= datetime.now(UTC)
    assert [(act.act, act.count) for act in audit.find(ledger, actor="ada")] == [("reschedule", 2), ("reschedule", 1)]
    assert penstock("jobs", "reschedule", "--key", "none", "--in", "1h").code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("cancel",),
        ("cancel", "x", "--key", "k"),
        ("cancel", "x", "--tenant", "t"),
        ("reschedule", "--in", "1h"),
        ("reschedule", "x"),
        ("reschedule", "x", "--in", "1h", "--at", "2031-01-01T00:00Z"),
        ("reschedule", "x", "--in", "1h", "--kind", "ledger.note"),
    ],
)
def test_ambiguous_arguments_are_refused(penstock: Run, ledger: Database, arguments: tuple[str, ...]) -> None:
    assert penstock("jobs", *arguments).code == 2
    assert audit.find(ledger) == []


def test_a_unique_job_is_enqueued_once(penstock: Run, ledger: Database) -> None:
    def enqueue(*options: str) -> Any:
        return penstock("enqueue", "ledger.note", "{}", "--key", "k", *options, "--json")

    first = enqueue("--unique", "existing")
    assert (first.code, first.json["created"]) == (0, True)
    assert enqueue("--unique", "existing").json == {"id": first.json["id"], "created": False}
    result = enqueue("--unique", "reject", "--unique-for", "1h")
    assert result.code == 1
    assert first.json["id"] in result.err
    assert enqueue("--unique", "debounce", "--debounce", "1h").json["created"]
    assert row_of(ledger, first.json["id"]).state == State.CANCELLED
    assert enqueue("--unique", "sometimes").code == 2
    assert enqueue("--unique", "debounce").code == 2


# Acts.

ACTS = (
    ("jobs reschedule {waits} --in 2h", "reschedule", "job"),
    ("jobs cancel {waits}", "cancel", "job"),
    ("jobs retry {waits}", "retry", "job"),
    ("jobs effects {doubtful} --forget ship", "forget effect", "job"),
    ("jobs erase --yes --where id={done}", "erase", "job"),
    ("deadletters replay {dead}", "replay", "dead letter"),
    ("deadletters discard {doubtful} --reason old", "discard", "dead letter"),
    ("schedules add nightly --kind ledger.note --every 1h", "add", "schedule"),
    ("schedules pause nightly", "pause", "schedule"),
    ("schedules resume nightly", "resume", "schedule"),
    ("schedules run nightly", "run", "schedule"),
    ("schedules backfill nightly --from 2026-03-01 --until 2026-03-02", "backfill", "schedule"),
    ("schedules remove nightly", "remove", "schedule"),
    ("workflows signal {workflow} approval {answer}", "signal", "workflow"),
    ("workflows cancel {workflow}", "cancel", "workflow"),
    ("workflows retry {workflow}", "retry", "workflow"),
    ("queues pause notes --reason late", "pause", "queue"),
    ("queues resume notes", "resume", "queue"),
    ("queues tune notes --concurrency 5", "concurrency", "queue"),
    ("kinds pause ledger.note", "pause", "kind"),
    ("kinds resume ledger.note", "resume", "kind"),
    ("pause all", "pause", "all"),
    ("resume all", "resume", "all"),
    ("workers drain w1", "drain", "worker"),
    ("workers stop w1", "stop", "worker"),
    ("gateway keys add shop", "add", "API key"),
    ("gateway keys revoke {key}", "revoke", "API key"),
)
"""Command, its act in the audit log, and the kind of its subject; in an order in which they succeed."""
NO_ACTS = (
    "up, demo, worker, dispatcher, flower, probe, enqueue, doctor, adopt, limits list, queues list, audit list, "
    "workflows start, jobs list, jobs show, jobs explain, deadletters list, deadletters groups, deadletters show, "
    "workflows list, "
    "workflows show, schedules list, schedules show, schedules next, schedules preview, schema export, schema check, "
    "schema catalog, schema asyncapi, gateway openapi, gateway keys list, db upgrade, db current, db prune, db stats, "
    "alerts list, kinds list, workers list, stats, settings, console hash-password, "
    "emails preview, syncs check"
)
"""Commands that run a process, send a job, read, or look after tables as dispatchers do."""
ELSEWHERE = "alerts silence, alerts unsilence, queues purge, queues move, limits set, limits reset"
"""Acts that need an alert in the settings, jobs in a broker or a limit: see `test_fleet.py`, `limits/test_queues.py`
and `limits/test_changes.py`."""


def commands(group: Any, *words: str) -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        nested = hasattr(command, "list_commands")
        yield from commands(command, *words, name) if nested else (" ".join((*words, name)),)


def test_each_act_of_the_command_line_is_in_the_audit_log_with_its_actor(penstock: Run, ledger: Database) -> None:
    ids = {"waits": retrying(ledger), "workflow": start(ledger, acme.Approved()), "answer": '{"approved":true}'}
    for name, outcome in (("dead", Outcome.DEAD), ("doubtful", Outcome.DEAD), ("done", Outcome.SUCCEEDED)):
        claim = claimed(ledger, message(Note()))
        ids[name] = claim.message.id
        begin(ledger, claim.message.id, claim.fence, "ship")
        end(ledger, claim, outcome, error="no" if name != "done" else None, reason="failed")
    every, performed = list(commands(typer.main.get_command(app))), []
    for line, act, subject_kind in ACTS:
        if line.startswith("workers "):
            start_worker(ledger, "w1")  # it never renews its lease, and commands wait for those who may
        words = line.format_map(ids).split()
        performed.append(next(name for name in every if line.startswith(f"{name} ")))
        result = penstock(*words, "--actor", line)
        assert result.code == 0, (line, result.err)
        [entry] = audit.find(ledger, actor=line)
        assert (entry.act, entry.subject_kind) == (act, subject_kind), line
        named = ("nightly", "notes", "ledger.note", "w1", None)
        assert entry.subject in (*ids.values(), *named) or line.startswith("gateway keys"), line
        if line.startswith("gateway keys add"):
            ids["key"] = str(entry.subject)
        move(ledger)  # a workflow ends once it is moved
    assert sorted([*performed, *NO_ACTS.split(", "), *ELSEWHERE.split(", ")]) == sorted(every)
    listed = penstock("audit", "list", "--limit", "100").out
    assert all(line.split(" {")[0] in listed for line, *_ in ACTS)
