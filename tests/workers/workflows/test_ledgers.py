"""Workflows on every database: each end of a job is counted once and each step begins once, whichever process dies."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import change, row_of, start_worker
from support.polling import until
from support.workflows import jobs as acme
from support.workflows.drive import advance_due, count, move, no_storage, result, rows_of, run, start, waiting

from penstock.config.errors import InvalidState
from penstock.config.sections.retention import RetentionSettings
from penstock.ledger.queries.fleet import count_resting
from penstock.ledger.retention import erasure
from penstock.ledger.retention.pruning import Pruning
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, steps, workflows
from penstock.ledger.transitions.cancel import cancel_key, request_cancel
from penstock.ledger.transitions.enqueue import enter
from penstock.ledger.workflows import commands
from penstock.ledger.workflows.read import due_workflows
from penstock.producers.explain import explain
from penstock.schemas import Job, State
from penstock.schemas.jobs.kind import registry
from penstock.schemas.wire.codec import encode
from penstock.workers.workflows.advance import WorkflowBatch, advance
from penstock.workers.workflows.definition import definitions

MEMBERS = 200


@dataclass
class Crash(Exception):
    where: str


def advance_or_die(ledger: Database, ids: list[str]) -> None:
    """Advance workflows as a dispatcher that dies in the middle of every other transaction."""
    if random.random() < 0.5:

        def die_before_the_commit(connection: sa.Connection) -> None:
            WorkflowBatch(connection, ledger, no_storage, 1_000_000, False).advance(ids)
            raise Crash("before the commit")

        with pytest.raises(Crash):
            ledger.write(die_before_the_commit)
    else:
        advance(ledger, ids, open_storage=no_storage, max_bytes=1_000_000)


def test_a_fan_in_fires_once_with_several_dispatchers_that_die_and_many_workers(ledger: Database) -> None:
    regions = [f"r{number}" for number in range(MEMBERS)]
    workflow_id = start(ledger, acme.Nightly(regions=regions))
    stopping = threading.Event()
    failures: list[BaseException] = []

    def watched(work: Callable[[], Any]) -> threading.Thread:
        def loop() -> None:
            while not stopping.is_set():
                try:
                    work()
                except BaseException as error:
                    failures.append(error)
                    return

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        return thread

    def dispatch() -> None:
        ids, _ = due_workflows(ledger)
        advance_or_die(ledger, ids) if ids else time.sleep(0.005)

    def run_jobs() -> None:
        rows = waiting(ledger)
        random.shuffle(rows)  # several workers get the same ones, and one of them the claim
        if not run(ledger, rows[: random.randint(1, 40)], f"w{threading.get_ident()}", result):
            time.sleep(0.005)

    threads = [watched(dispatch) for _ in range(3)] + [watched(run_jobs) for _ in range(3)]
    try:
        until(lambda: failures or commands.show(ledger, workflow_id).row.state == "succeeded", pause=0.02)
    except AssertionError as error:
        error.add_note(f"its steps are { ({name: row.state for name, row in rows_of(ledger, workflow_id).items()}) }")
        raise
    finally:
        stopping.set()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert (count(ledger, "wf.sync"), count(ledger, "wf.report"), count(ledger, "wf.mail")) == (1, MEMBERS, 1)
    head = rows_of(ledger, workflow_id)["report"]
    assert (head.members, head.done, head.failed) == (MEMBERS, MEMBERS, 0)
    [mail] = ledger.read(lambda c: list(c.scalars(sa.select(jobs.c.payload).where(jobs.c.kind == "wf.mail"))))
    assert json.loads(mail)["links"] == regions  # every result, in the order of the jobs


def test_the_end_of_a_job_is_noted_with_its_outcome_or_not_at_all(ledger: Database) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["north"]))
    move(ledger)
    assert due_workflows(ledger) == ([], False)
    start_worker(ledger, "w1")
    run(ledger, waiting(ledger), "w1", result)
    assert due_workflows(ledger) == ([workflow_id], False)
    move(ledger)
    assert rows_of(ledger, workflow_id)["report"].state == "running"


def test_the_end_of_an_ordinary_job_touches_no_step(ledger: Database) -> None:
    envelope = encode(acme.Mail())
    ledger.write(lambda connection: enter(connection, ledger, [envelope], datetime.now(UTC)))
    statements: list[str] = []
    sa.event.listen(ledger.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    run(ledger, waiting(ledger), "w1", result)
    assert not [text for text in statements if "penstock_steps" in text]


def test_a_workflow_whose_code_has_changed_rests_and_says_why(ledger: Database, other: Iterator[None]) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["north"]))
    was = definitions["wf.nightly"]
    definitions["wf.nightly"] = definitions["wf.branching"]
    move(ledger)
    row = commands.show(ledger, workflow_id).row
    assert row.state == "running"
    assert row.error.startswith(
        "rests: wf.nightly was changed since it began (report is gone, tell is gone, few is new"
    )
    assert count(ledger, "wf.sync") == 0
    definitions["wf.nightly"] = was
    later(ledger, workflow_id)
    move(ledger)
    row = commands.show(ledger, workflow_id).row
    assert (row.state, row.error) == ("running", None)
    assert count(ledger, "wf.sync") == 1


def test_a_workflow_whose_input_became_stricter_rests_until_its_code_is_back(
    ledger: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["s3cret"]))
    with monkeypatch.context() as patched:
        kind = replace(registry["wf.nightly"], job=type("Strict", (Job,), {"__annotations__": {"since": str}}))
        patched.setitem(registry._kinds, "wf.nightly", kind)
        for _ in range(2):
            later(ledger, workflow_id)
            move(ledger)
    row = commands.find(ledger)[0]
    assert row.state == "running"
    assert row.error.startswith("rests: its input does not fit wf.nightly any more (since: Field required")
    assert "s3cret" not in row.error
    assert len([record for record in caplog.records if "rests: its input" in record.getMessage()]) == 1
    job = ledger.read(lambda connection: connection.execute(sa.select(jobs).where(jobs.c.id == workflow_id)).one())
    assert (job.state, job.error) == (State.SCHEDULED, row.error)
    assert explain(ledger, workflow_id).because.startswith(f"its workflow {row.error}")
    assert count_resting(ledger) == {"wf.nightly": 1}
    later(ledger, workflow_id)
    move(ledger)
    assert commands.find(ledger)[0].error is None
    assert count_resting(ledger) == {}
    assert explain(ledger, workflow_id).because.startswith("its workflow is running, and it ends with the last step")
    assert count(ledger, "wf.sync") == 1


def test_a_workflow_whose_code_has_changed_can_be_cancelled_and_restarted(ledger: Database, other: None) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["north"]))
    move(ledger)
    assert count(ledger, "wf.sync") == 1
    definitions["wf.nightly"] = replace(
        definitions["wf.nightly"], compensations={}, steps=definitions["wf.reminding"].steps
    )
    commands.cancel(ledger, workflow_id, actor="ada", undo=False)
    move(ledger)
    assert commands.show(ledger, workflow_id).row.state == "cancelled"
    assert rows_of(ledger, workflow_id)["orders"].state == "cancelled"
    assert commands.retry(ledger, workflow_id, actor="ada", everything=True) == ["welcome", "pause", "remind"]
    assert set(rows_of(ledger, workflow_id)) == {"welcome", "pause", "remind"}


@pytest.mark.parametrize("how", ["by id", "by key"])
def test_the_job_of_a_cancelled_workflow_ends_with_its_last_compensation(ledger: Database, how: str) -> None:
    workflow_id = start(ledger, acme.Trip())
    change(ledger, workflow_id, key="k")

    def state() -> str:
        return str(row_of(ledger, workflow_id).state)

    move(ledger)
    run(ledger, waiting(ledger), "w1", result)
    move(ledger)
    if how == "by id":
        assert request_cancel(ledger, workflow_id) == State.SCHEDULED
    else:
        assert cancel_key(ledger, "k") == [workflow_id]
    assert explain(ledger, workflow_id).because.startswith("its workflow is")
    move(ledger)
    assert (count(ledger, "wf.release"), state()) == (1, "scheduled"), "its compensation is under way"
    run(ledger, waiting(ledger), "w1", result)
    move(ledger)
    assert (commands.show(ledger, workflow_id).row.state, state()) == ("cancelled", "cancelled")
    assert not row_of(ledger, workflow_id).cancel_requested


def test_a_resting_workflow_can_be_cancelled_by_its_job(ledger: Database, other: None) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["north"]))
    definitions["wf.nightly"] = definitions["wf.branching"]
    move(ledger)
    request_cancel(ledger, workflow_id)
    move(ledger)
    assert row_of(ledger, workflow_id).state == "cancelled"
    assert commands.show(ledger, workflow_id).row.state == "cancelled"


def test_a_cancelled_workflow_waits_for_nothing_any_more(ledger: Database) -> None:
    workflow_id = start(ledger, acme.Reminding(seconds=3600.0))
    move(ledger)
    run(ledger, waiting(ledger), "w1", result)
    move(ledger)
    assert rows_of(ledger, workflow_id)["pause"].state == "waiting"
    commands.cancel(ledger, workflow_id, actor="ada")
    move(ledger)
    pause = rows_of(ledger, workflow_id)["pause"]
    assert (pause.state, pause.due_at) == ("pending", None)


def later(ledger: Database, workflow_id: str) -> None:
    """Make steps due that would be due later."""
    where = sa.and_(steps.c.workflow_id == workflow_id, steps.c.due_at.is_not(None))
    ledger.write(lambda connection: connection.execute(sa.update(steps).where(where).values(due_at=from_now())))


@pytest.fixture
def other() -> Iterator[None]:
    was = definitions["wf.nightly"]
    yield
    definitions["wf.nightly"] = was


def test_a_dispatcher_that_does_not_know_a_workflow_leaves_it_to_another(ledger: Database, other: None) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["north"]))
    was = definitions.pop("wf.nightly")
    move(ledger)
    assert due_workflows(ledger) == ([], False)  # not looked at again and again
    assert commands.show(ledger, workflow_id).row.error is None
    definitions["wf.nightly"] = was
    later(ledger, workflow_id)
    move(ledger)
    assert count(ledger, "wf.sync") == 1


def test_a_deleted_job_of_a_step_is_found_by_polling(ledger: Database) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["north"]))
    move(ledger)
    job_id = rows_of(ledger, workflow_id)["orders"].job_id
    ledger.write(lambda connection: connection.execute(sa.delete(jobs).where(jobs.c.id == job_id)))
    assert due_workflows(ledger) == ([], False)
    later(ledger, workflow_id)
    move(ledger)
    row = commands.show(ledger, workflow_id).row
    assert (row.state, row.error) == ("failed", "step orders is dead: its job is not recorded any more")


def test_a_result_that_does_not_fit_fails_the_step_that_takes_it(ledger: Database) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["north"]))
    move(ledger)
    run(ledger, waiting(ledger), "w1", lambda job: {"rows": 1})
    move(ledger)
    error = commands.show(ledger, workflow_id).row.error
    assert error == "step report is dead: the result of step orders has no 'regions', which 'region' is to map over"
    commands.retry(ledger, workflow_id, actor="ada", from_step="orders")
    move(ledger)
    run(ledger, waiting(ledger), "w1", lambda job: {"rows": "many", "regions": ["north"]})
    move(ledger)
    run(ledger, waiting(ledger), "w1", result)
    move(ledger)
    error = commands.show(ledger, workflow_id).row.error
    assert error.startswith("step tell is dead: the result of step orders does not fit parameter 'orders': rows:")


def test_a_step_that_makes_too_large_a_job_is_dead_and_sends_none(ledger: Database) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["a" * 2000, "b"]))
    advance_due(ledger, max_bytes=2500)
    run(ledger, waiting(ledger), "w1", lambda job: {"rows": 1, "regions": ["b", "a" * 3000]})
    advance_due(ledger, max_bytes=2500)
    error = commands.show(ledger, workflow_id).row.error
    assert error.startswith("step report is dead: wf.report: the payload is 30")
    assert count(ledger, "wf.report") == 0


def test_steps_of_workflows_on_record_are_not_pruned_and_go_with_them(ledger: Database) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["north"]))
    move(ledger)
    run(ledger, waiting(ledger), "w1", result)
    move(ledger)
    nothing = timedelta(seconds=0)
    kept = RetentionSettings(succeeded=nothing, dead=None, discarded=None, cancelled=None)

    def prune() -> Any:
        return Pruning(ledger, kept, no_storage, now=datetime.now(UTC) + timedelta(minutes=1)).run()

    assert prune()["succeeded"] == 0
    for _ in range(2):
        run(ledger, waiting(ledger), "w1", result)
        move(ledger)
    assert commands.show(ledger, workflow_id).row.state == "succeeded"
    total = prune() + prune()
    assert total["succeeded"] == 4
    for table in (jobs, steps, workflows):
        assert ledger.read(lambda c, table=table: c.execute(sa.select(table)).first()) is None  # type: ignore[misc]


def test_a_running_workflow_is_not_retried(ledger: Database) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["north"]))
    with pytest.raises(InvalidState, match="is running; only one that has ended"):
        commands.retry(ledger, workflow_id, actor="ada")
    commands.cancel(ledger, workflow_id, actor="ada")
    move(ledger)
    assert commands.show(ledger, workflow_id).row.state == "cancelled"
    assert commands.retry(ledger, workflow_id, actor="ada", everything=True) == ["orders", "report", "tell"]
    move(ledger)
    assert rows_of(ledger, workflow_id)["orders"].state == "running"


def test_a_move_asks_as_many_questions_for_a_thousand_jobs_as_for_ten(ledger: Database) -> None:
    counts = []
    for size in (10, 1000):
        start(ledger, acme.Nightly(regions=[f"r{number}" for number in range(size)]))
        move(ledger)
        run(ledger, waiting(ledger), "w1", result)
        statements: list[str] = []

        def listen(*event: Any, statements: list[str] = statements) -> None:
            statements.append(event[2])

        sa.event.listen(ledger.engine, "before_cursor_execute", listen)
        move(ledger)
        sa.event.remove(ledger.engine, "before_cursor_execute", listen)
        counts.append(sum(text.startswith("SELECT") for text in statements))
        ledger.write(lambda connection: connection.execute(sa.update(jobs).values(state=State.DISCARDED)))
    assert counts[0] == counts[1]


def test_a_unique_workflow_that_is_replaced_is_cancelled(ledger: Database) -> None:
    first = start(ledger, acme.Only(what="a"))
    move(ledger)
    run(ledger, waiting(ledger), "w1", result)
    move(ledger)
    assert rows_of(ledger, first)["pause"].state == "waiting"
    second = start(ledger, acme.Only(what="a"))
    move(ledger)
    assert commands.show(ledger, first).row.state == "cancelled"
    assert commands.show(ledger, second).row.state == "running"


def test_a_step_whose_unique_job_is_there_already_takes_its_result(ledger: Database) -> None:
    envelope = encode(acme.Single(what="a"))
    ledger.write(lambda connection: enter(connection, ledger, [envelope], datetime.now(UTC)))
    workflow_id = start(ledger, acme.Only(what="a"))
    move(ledger)
    assert rows_of(ledger, workflow_id)["single"].job_id == envelope.id
    run(ledger, waiting(ledger), "w1", result)
    later(ledger, workflow_id)
    move(ledger)
    assert rows_of(ledger, workflow_id)["pause"].state == "waiting"


def test_erasing_the_job_of_a_workflow_erases_its_steps_and_what_was_answered(ledger: Database) -> None:
    workflow_id = start(ledger, acme.Approved())
    move(ledger)
    commands.signal(ledger, workflow_id, "approval", {"approved": True, "by": "Ada"}, actor="ada")
    done = erasure.erase(ledger, {"id": workflow_id}, actor="ada", open_storage=no_storage)
    assert (done.counts["workflows"], done.counts["steps"]) == (1, 3)
    move(ledger)
    for table in (steps, workflows):
        assert ledger.read(lambda c, table=table: c.execute(sa.select(table)).first()) is None  # type: ignore[misc]


def test_a_workflow_goes_on_under_the_new_name_of_its_kind(ledger: Database, other: None) -> None:
    workflow_id = start(ledger, acme.Nightly(regions=["north"]))
    where = workflows.c.id == workflow_id
    renamed = sa.update(workflows).where(where).values(kind="wf.nightly.before")
    ledger.write(lambda connection: connection.execute(renamed))
    move(ledger)
    assert rows_of(ledger, workflow_id)["orders"].state == "running"
