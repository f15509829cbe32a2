"""A round of workflows: their steps on both engines, breakages in the middle of a fan-out, and the count of
the steps' effects."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from breaking import Breaker
from chaos_jobs import QUEUE
from chaos_site import Site, running_postgres
from chaos_workflow_jobs import OTHER_QUEUE, Part, Summing
from support.polling import SETTLE_SECONDS, until
from support.servers.killable_redis import running_redis

from penstock.ledger.sql.tables import jobs, steps, workflows
from penstock.producers import JobHandle

WORKFLOWS = 4
FIRST = ("kill_worker", "kill_dispatcher", "kill_redis")


@dataclass
class WorkflowReport:
    steps: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        broken = ", ".join(f"{name} x{count}" for name, count in sorted(self.broken.items()))
        return [
            f"  {WORKFLOWS} workflows, {self.steps:,} steps; {broken}",
            *(f"  FAULT {fault}" for fault in self.faults),
        ]


class WorkflowSite(Site):
    """A worker of each engine, each with a queue of its own."""

    def start_worker(self, slot: int) -> None:
        engine, queue = (("celery", QUEUE), ("dramatiq", OTHER_QUEUE))[slot % 2]
        command = ["worker", "--engine", engine, "--queues", queue, "--concurrency", "30"]
        self.workers[slot] = self._run([*command, "--import", "chaos_workflow_jobs"])

    def start_dispatcher(self, slot: int) -> None:
        self.dispatchers[slot] = self._run(["dispatcher", "--import", "chaos_workflow_jobs"])


def one_workflow_round(
    seed: int,
    count: int,
    folder: Path,
    *,
    database: str = "sqlite",
    ledger_url: str | None = None,
    seconds: float = 30.0,
) -> WorkflowReport:
    """Run workflows of `count` steps in all while things break for `seconds`.

    Arguments:
        database, ledger_url: as of a round of a pair.
    """
    report, began = WorkflowReport(), time.monotonic()
    with ExitStack() as opened:
        redis = opened.enter_context(running_redis(folder))
        postgres = None
        if database == "postgres" and ledger_url is None:
            postgres = opened.enter_context(running_postgres())
        prefix = f"c{uuid.uuid4().hex[:10]}"
        site = WorkflowSite(
            "celery",
            folder,
            prefix,
            broker_url=redis.url,
            broker_server=redis,
            postgres=postgres,
            ledger_url=ledger_url,
        )
        opened.callback(site.stop)
        parts = max(count // WORKFLOWS - 3, 1)
        workflows = [Summing(first=number * (parts + 10), parts=parts) for number in range(WORKFLOWS)]
        handles = [site.producer.enqueue(summing) for summing in workflows]
        site.start()
        first = [*FIRST, *(["kill_database"] if postgres else [])]
        _wait_for_a_fan_out(site)
        breaker = Breaker(site, seed, first=first, seconds=seconds)
        breaker.start()
        breaking = time.monotonic()
        try:
            while time.monotonic() < breaking + seconds and breaker.error is None:
                time.sleep(0.05)
        finally:
            breaker.stop()
        report.broken = breaker.done
        site.wait_for_servers()
        _settle(site)
        for summing, handle in zip(workflows, handles, strict=True):
            report.steps += summing.parts + 3
            report.faults += _faults(site, summing, handle)
        report.faults += _doubles(site)
    report.seconds = time.monotonic() - began
    return report


def _wait_for_a_fan_out(site: Site) -> None:
    started = sa.select(steps.c.step).where(steps.c.step == "each", steps.c.started_at.is_not(None)).limit(1)
    until(
        lambda: site.database.read(lambda connection: connection.execute(started).first()),
        "the start of a fan-out",
        SETTLE_SECONDS,
    )


def _settle(site: Site) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    ended = sa.select(sa.func.count()).select_from(workflows).where(workflows.c.finished_at.is_not(None))
    while time.monotonic() < deadline:
        if site.database.read(lambda c: c.execute(ended).scalar()) == WORKFLOWS and not site.unfinished():
            break
        site.revive()
        time.sleep(0.5)
    time.sleep(1.0)  # a duplicate on its way would come now


def _faults(site: Site, workflow: Summing, handle: JobHandle) -> list[str]:
    faults = []
    state = site.database.read(
        lambda connection: connection.execute(
            sa.select(workflows.c.state, workflows.c.error).where(workflows.c.id == handle.id)
        ).first()
    )
    if state is None or state.state != "succeeded":
        return [f"workflow {workflow.first} is {state}"]
    effects = site.effects()
    numbers = range(workflow.first, workflow.first + workflow.parts + 3)
    lost = [number for number in numbers if effects[number] == 0]
    again = [number for number in numbers if effects[number] > 1]
    faults += [f"{len(lost)} effects of workflow {workflow.first} are lost: {lost[:5]}"] if lost else []
    faults += [f"{len(again)} effects of workflow {workflow.first} are repeated: {again[:5]}"] if again else []
    [total] = site.database.read(
        lambda connection: connection.scalars(
            sa.select(jobs.c.result).where(
                jobs.c.kind == "chaos.total", jobs.c.payload.contains(f'"number": {numbers[-2]},')
            )
        ).all()
    )
    expected = {"parts": workflow.parts + 1, "total": sum(range(workflow.first, workflow.first + workflow.parts + 1))}
    if json.loads(total) != expected:
        faults.append(f"workflow {workflow.first} has summed {total}, not {expected}")
    return faults


def _doubles(site: Site) -> list[str]:
    """A step that has started twice has made two jobs with one number."""
    rows = [row for row in site.rows().values() if row.kind in (Part.kind().name, "chaos.total")]
    numbers = Counter(json.loads(row.payload)["number"] for row in rows)
    twice = [number for number, count in numbers.items() if count > 1]
    return [f"{len(twice)} steps have started twice: {twice[:5]}"] if twice else []
