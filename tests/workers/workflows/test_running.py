"""Workflows from their start to their end, in this process: no server needed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from support.polling import until
from support.workflows import jobs as acme

from penstock.config.errors import InvalidJob, InvalidState, JobNotFound
from penstock.ledger.queries import dead_letters
from penstock.ledger.transitions import replay as replays
from penstock.ledger.workflows import commands
from penstock.producers import JobHandle
from penstock.workers.engines.inline import Inline


@pytest.fixture(autouse=True)
def _nothing_done() -> Iterator[None]:
    acme.done.clear()
    acme.broken.clear()
    acme.slow.clear()
    yield
    acme.slow.clear()


@pytest.fixture(scope="module")
def penstock() -> Iterator[Inline]:
    with Inline(queues=["wf", "wf-reports"]) as engine:
        yield engine


def ended(handle: JobHandle) -> Any:
    return handle.wait(60)


def states(penstock: Inline, handle: JobHandle) -> dict[str, str]:
    """State of each step; empty before the workflow has started."""
    try:
        output = commands.show(penstock.database, handle.id)
    except JobNotFound:
        return {}
    return {name: row.state for name, row in output.steps.items()}


def test_a_fan_out_runs_a_job_for_each_item_and_the_next_step_gets_all_results(penstock: Inline) -> None:
    handle = penstock.producer.enqueue(acme.Nightly(regions=["north", "south", "west"]))
    status = ended(handle)
    assert status.state == "succeeded", status.error
    assert status.result == "sent 3"
    assert acme.done[0] == "sync"
    assert sorted(acme.done[1:4]) == ["report north", "report south", "report west"]
    assert acme.done[4] == "mail 3 rows https://reports/north https://reports/south https://reports/west"


def test_a_fan_out_over_nothing_is_done_at_once(penstock: Inline) -> None:
    assert ended(penstock.producer.enqueue(acme.Nightly(regions=[]))).result == "sent 0"


def test_discarded_jobs_of_a_fan_out_are_left_out_of_its_results(penstock: Inline) -> None:
    assert ended(penstock.producer.enqueue(acme.Nightly(regions=["north", "nowhere"]))).result == "sent 1"


@pytest.mark.parametrize(("rows", "expected"), [(1, "few=sent 0 many=None"), (3, "few=None many=sent 0")])
def test_a_branch_that_returns_none_is_skipped_with_what_follows_it(penstock: Inline, rows: int, expected: str) -> None:
    handle = penstock.producer.enqueue(acme.Branching(rows=rows))
    assert ended(handle).state == "succeeded"
    assert f"mail {expected}" in acme.done
    by_step = states(penstock, handle)
    assert (by_step["few"], by_step["many"]) == (("succeeded", "skipped") if rows < 3 else ("skipped", "succeeded"))
    assert by_step["after_many"] == by_step["many"]


def test_a_step_waits_until_it_is_signalled(penstock: Inline) -> None:
    handle = penstock.producer.enqueue(acme.Approved())
    until(lambda: states(penstock, handle).get("approval") == "waiting")
    with pytest.raises(InvalidJob, match="step approval: the answer does not fit: approved"):
        commands.signal(penstock.database, handle.id, "approval", {"approved": "maybe"}, actor="ada")
    with pytest.raises(InvalidState, match="those that do: approval"):
        commands.signal(penstock.database, handle.id, "report", {}, actor="ada")
    commands.signal(penstock.database, handle.id, "approval", {"approved": True, "by": "Ada"}, actor="ada")
    assert ended(handle).state == "succeeded"
    assert acme.done[-1] == "mail True by Ada"
    with pytest.raises(InvalidState, match="it is succeeded"):
        commands.signal(penstock.database, handle.id, "approval", {"approved": False}, actor="ada")


def test_the_job_of_a_running_workflow_waits_without_a_time(penstock: Inline) -> None:
    handle = penstock.producer.enqueue(acme.Approved())
    until(lambda: states(penstock, handle).get("approval") == "waiting")
    waiting = until(lambda: (status := handle.status()).state == "scheduled" and status)
    assert waiting.due_at is None
    assert "workflow" in (waiting.error or "")
    commands.signal(penstock.database, handle.id, "approval", {"approved": True, "by": "Ada"}, actor="ada")
    assert ended(handle).state == "succeeded"


def test_a_signal_may_come_before_its_step_waits(penstock: Inline) -> None:
    acme.slow.add("north")
    handle = penstock.producer.enqueue(acme.Approved())
    until(lambda: states(penstock, handle).get("report") == "running")
    commands.signal(penstock.database, handle.id, "approval", {"approved": True, "by": "Ada"}, actor="ada")
    with pytest.raises(InvalidState, match="it is answered"):
        commands.signal(penstock.database, handle.id, "approval", {"approved": False}, actor="ada")
    acme.slow.clear()
    assert ended(handle).state == "succeeded"
    assert acme.done[-1] == "mail True by Ada"


@pytest.mark.parametrize("lenient", [True, False])
def test_an_unsignalled_step_takes_its_default_or_is_dead(penstock: Inline, lenient: bool) -> None:
    handle = penstock.producer.enqueue(acme.Approved(seconds=0.05, lenient=lenient))
    status = ended(handle)
    if lenient:
        assert acme.done[-1] == "mail False by the clock"
    else:
        assert (status.state, status.error) == ("dead", "step approval is dead: nobody answered in time")


def test_a_step_sleeps_and_nothing_runs_meanwhile(penstock: Inline) -> None:
    handle = penstock.producer.enqueue(acme.Reminding(seconds=86_400.0))
    until(lambda: states(penstock, handle).get("pause") == "waiting")
    row = commands.show(penstock.database, handle.id).steps["pause"]
    assert timedelta(hours=23) < row.due_at - row.started_at <= timedelta(hours=24)
    commands.cancel(penstock.database, handle.id, actor="ada")
    assert ended(handle).state == "cancelled"
    assert ended(penstock.producer.enqueue(acme.Reminding(seconds=0.05))).state == "succeeded"
    assert acme.done[-1] == "mail remember"


def test_done_steps_are_compensated_in_reverse_when_a_step_dies(penstock: Inline) -> None:
    acme.broken.add("car")
    handle = penstock.producer.enqueue(acme.Trip())
    status = ended(handle)
    assert status.state == "dead"
    assert status.error is not None
    assert status.error.startswith("step car is dead: ValueError: no car left")
    assert acme.done == ["reserve flight", "reserve hotel", "release hotel-1", "release flight-1"]
    by_step = states(penstock, handle)
    assert (by_step["flight"], by_step["hotel"], by_step["car"]) == ("compensated", "compensated", "dead")


def test_a_retry_restarts_compensated_steps(penstock: Inline) -> None:
    acme.broken.add("car")
    handle = penstock.producer.enqueue(acme.Trip())
    assert ended(handle).state == "dead"
    acme.broken.clear()
    acme.done.clear()
    assert commands.retry(penstock.database, handle.id, actor="ada") == ["flight", "hotel", "car"]
    until(lambda: handle.status().state == "succeeded")
    assert acme.done == ["reserve flight", "reserve hotel", "reserve car"]


def test_a_compensation_that_dies_is_reported_and_a_retry_goes_on_compensating(penstock: Inline) -> None:
    acme.broken |= {"car", "release hotel-1"}
    handle = penstock.producer.enqueue(acme.Trip())
    status = ended(handle)
    assert status.error is not None
    assert "compensation cancel_hotel is dead: ValueError: cannot release hotel-1" in status.error
    acme.broken.discard("release hotel-1")
    acme.done.clear()
    assert commands.retry(penstock.database, handle.id, actor="ada") == ["cancel_hotel"]
    until(lambda: states(penstock, handle)["flight"] == "compensated")
    assert acme.done == ["release hotel-1", "release flight-1"]
    until(lambda: handle.status().state == "dead")


def test_a_retry_repeats_only_failed_steps(penstock: Inline) -> None:
    acme.broken.add("south")
    handle = penstock.producer.enqueue(acme.Nightly(regions=["north", "south", "west"]))
    status = ended(handle)
    assert status.state == "dead"
    assert status.error is not None
    assert status.error.startswith("step report is dead: 1 of 3 jobs did not succeed, the first of them: ValueError")
    acme.broken.clear()
    acme.done.clear()
    assert commands.retry(penstock.database, handle.id, actor="ada") == ["report"]
    until(lambda: handle.status().state == "succeeded")
    assert acme.done[0] == "report south"
    assert acme.done[1].startswith("mail 3 rows https://reports/north https://reports/south")
    assert len(acme.done) == 2


def test_replaying_the_dead_letter_of_a_step_resumes_the_workflow(penstock: Inline) -> None:
    acme.broken.add("south")
    handle = penstock.producer.enqueue(acme.Nightly(regions=["north", "south"]))
    assert ended(handle).state == "dead"
    acme.broken.clear()
    letters = dead_letters.find(penstock.database, dead_letters.Selection(), limit=100)
    letter = next(
        dead_letter for dead_letter in letters if dead_letter.kind == "wf.report" and dead_letter.replayed_at is None
    )
    replays.replay(penstock.database, dead_letters.Selection((letter.id,)), actor="ada")
    until(lambda: handle.status().state == "succeeded")
    assert states(penstock, handle)["tell"] == "succeeded"


def test_the_dead_letter_of_a_workflow_can_be_replayed(penstock: Inline) -> None:
    acme.broken.add("mail")
    handle = penstock.producer.enqueue(acme.Nightly(regions=["north"]))
    assert ended(handle).state == "dead"
    acme.broken.clear()
    acme.done.clear()
    replays.replay(penstock.database, dead_letters.Selection((handle.id,)), actor="ada")
    until(lambda: handle.status().state == "succeeded")
    assert acme.done == ["mail 3 rows https://reports/north"]


def test_a_workflow_is_retried_from_a_step_with_an_edited_input(penstock: Inline) -> None:
    handle = penstock.producer.enqueue(acme.Nightly(regions=["north"]))
    assert ended(handle).state == "succeeded"
    with pytest.raises(InvalidState, match="say --from or --all"):
        commands.retry(penstock.database, handle.id, actor="ada")
    with pytest.raises(InvalidState, match="has no step 'mail'; it has orders, report, tell"):
        commands.retry(penstock.database, handle.id, actor="ada", from_step="mail")
    with pytest.raises(InvalidJob, match="regions"):
        commands.retry(penstock.database, handle.id, actor="ada", from_step="tell", edit={"regions": 1})
    acme.done.clear()
    names = commands.retry(penstock.database, handle.id, actor="ada", from_step="orders", edit={"regions": ["east"]})
    assert names == ["orders", "report", "tell"]
    until(lambda: handle.status().state == "succeeded")
    assert acme.done == ["sync", "report east", "mail 3 rows https://reports/east"]
    acme.done.clear()
    commands.retry(penstock.database, handle.id, actor="ada", from_step="tell")
    until(lambda: handle.status().state == "succeeded")
    assert acme.done == ["mail 3 rows https://reports/east"]


def test_a_workflow_in_a_workflow_is_a_step_with_its_result(penstock: Inline) -> None:
    handle = penstock.producer.enqueue(acme.Outer(regions=["north", "south"]))
    assert ended(handle).state == "succeeded"
    assert acme.done[-1] == "mail inner sent 2"


def test_an_inner_workflow_that_fails_fails_the_outer_and_a_retry_takes_up_both(penstock: Inline) -> None:
    acme.broken.add("south")
    handle = penstock.producer.enqueue(acme.Outer(regions=["north", "south"]))
    status = ended(handle)
    assert status.error is not None
    assert status.error.startswith("step inner is dead: step report is dead: 1 of 2 jobs")
    acme.broken.clear()
    acme.done.clear()
    commands.retry(penstock.database, handle.id, actor="ada")
    until(lambda: handle.status().state == "succeeded")
    assert [line.split()[0] for line in acme.done] == ["report", "mail", "mail"]


def test_cancelling_a_workflow_stops_what_runs_of_it_and_of_those_in_it(penstock: Inline) -> None:
    acme.slow.add("north")
    handle = penstock.producer.enqueue(acme.Outer(regions=["north", "south"]))
    until(lambda: "begin north" in acme.done)
    commands.cancel(penstock.database, handle.id, actor="ada")
    with pytest.raises(InvalidState, match="cannot be cancelled"):
        commands.cancel(penstock.database, handle.id, actor="ada")
    assert ended(handle).state == "cancelled"
    assert "report north" not in acme.done
    inner = commands.find(penstock.database, kind="wf.nightly", limit=1)[0]
    assert inner.state == "cancelled"
    acme.slow.clear()
    commands.retry(penstock.database, handle.id, actor="ada")
    until(lambda: handle.status().state == "succeeded")


def test_cancelling_the_job_of_a_workflow_cancels_the_workflow(penstock: Inline) -> None:
    acme.slow.add("hotel")
    handle = penstock.producer.enqueue(acme.Trip())
    until(lambda: "begin hotel" in acme.done)
    handle.cancel()
    assert ended(handle).state == "cancelled"
    assert commands.show(penstock.database, handle.id).row.state == "cancelled"
    assert acme.done == ["reserve flight", "begin hotel", "release flight-1"], "also what is undone is over by then"
