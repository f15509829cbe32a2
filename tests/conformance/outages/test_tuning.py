"""Concurrency and weight of a queue, set in the ledger, take effect in workers of every engine while they run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import acme
import sqlalchemy as sa
from support.polling import until, until_quiet
from support.stack import Stack, lines

from penstock.config.errors import InvalidState
from penstock.ledger.members import controls
from penstock.ledger.sql.tables import jobs
from penstock.schemas import State

EACH = 300
"""Jobs in each of two queues: more than run until the numbers are read."""
LOOKED_AT = 60


def running(stack: Stack) -> list[str]:
    select = sa.select(jobs.c.id).where(jobs.c.state == State.RUNNING)
    return list(stack.database.read(lambda connection: connection.scalars(select).all()))


def test_the_concurrency_of_a_queue_changes_in_a_running_worker(own_stack: Stack, tmp_path: Path) -> None:
    stack, file = own_stack, str(tmp_path / "runs")

    def tune(slots: int | None) -> None:
        controls.tune(stack.database, "acme", "concurrency", slots, actor="ada")

    def assert_runs(count: int) -> None:
        until(lambda: len(running(stack)) == count, f"{count} running jobs")
        assert until_quiet(lambda: len(running(stack))) == count

    tune(5)
    stack.start_worker(concurrency=3)
    handles = stack.producer.enqueue_many([acme.Mark(file=file, text="x", seconds=3600) for _ in range(30)])
    assert_runs(5)
    tune(8)
    assert_runs(8)
    tune(2)
    stack.wait_for_beats()
    assert len(running(stack)) == 8, "what runs goes on"
    for job_id in running(stack):
        stack.producer.handle(job_id).cancel()
    assert_runs(2)
    tune(None)
    assert_runs(3)
    for handle in handles:
        with suppress(InvalidState):  # cancelled above
            handle.cancel()
    until(lambda: not running(stack), "an idle worker")


def test_the_weight_of_a_queue_changes_in_a_running_worker(own_stack: Stack, tmp_path: Path) -> None:
    stack, file = own_stack, tmp_path / "runs"

    def weigh(acme_weight: int, other_weight: int) -> None:
        for queue, weight in (("acme", acme_weight), ("emails", other_weight)):
            controls.tune(stack.database, queue, "weight", weight, actor="ada")

    def share_of_acme() -> float:
        """Share of the queue in the runs that follow when the worker has read the weights."""
        stack.wait_for_beats()
        first = len(lines(file)) + 5  # fetched before
        ran = until(lambda: len(texts := lines(file)) >= first + LOOKED_AT and texts, "runs")
        return ran[first : first + LOOKED_AT].count("acme") / LOOKED_AT

    controls.pause(stack.database, "all", actor="ada")
    for queue in ("acme", "emails"):
        for _ in range(EACH):
            stack.producer.enqueue(acme.Mark(file=str(file), text=queue, seconds=0.01), queue=queue)
    weigh(9, 1)
    command = ["worker", "--engine", stack.engine, "--queues", "acme,emails", "--concurrency", "1"]
    stack.run([*command, "--import", "acme"])
    until(stack.live_workers, "the worker")
    controls.resume(stack.database, "all", actor="ada")
    until(lambda: lines(file), "the first run")
    assert share_of_acme() > 0.7
    weigh(1, 9)
    assert share_of_acme() < 0.3
    controls.pause(stack.database, "all", actor="ada")  # the others are deleted with their queues
