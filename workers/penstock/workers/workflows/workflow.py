"""`Workflow`: a graph of jobs, written as a class. It is a job itself, whose end is that of its last step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penstock.config.errors import KindError
from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.workflows.rows import PARKED
from penstock.schemas.jobs.job import Job
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import handles
from penstock.workers.handlers.resources import provides
from penstock.workers.handlers.returns import Snooze
from penstock.workers.workflows import start as starting
from penstock.workers.workflows.definition import define, definitions


class Workflow(Job):
    """The base of every workflow. Its fields are the input, its steps the methods marked with `@step`.

        class MonthEnd(Workflow, kind="month.end"):
            month: date

            @step
            def sync(self) -> SyncOrders:
                return SyncOrders(month=self.month)

            @step
            def report(self, region: str = map_over("sync.regions")) -> BuildReport:
                return BuildReport(month=self.month, region=region)

            @step
            def mail(self, report: list[Built]) -> SendEmail:
                return SendEmail(to=OFFICE, links=[one.link for one in report])

    It is started as any job is: `producer.enqueue(MonthEnd(month=…))`, by an outbox or a schedule. Its handle waits for
    the end of all of it, and its result is that of the one step no other needs.

    Class keywords: those of `Job`, except `timeout` and `track`, which would be about its start.

    Raises:
        KindError: a step cannot be run as it is written: it names what is no step, waits for itself, makes no job, or
            takes a result of another type than its step's handler returns.
    """

    @classmethod
    def __pydantic_init_subclass__(cls, *, kind: str | None = None, **options: Any) -> None:
        if kind is None:
            super().__pydantic_init_subclass__(**options)
            return
        for name in ("timeout", "track"):
            if name in options:
                raise KindError(f"workflow {kind!r}: {name}= is for jobs; give it to those of its steps")
        definition = define(cls, kind)
        definition.check_results()
        super().__pydantic_init_subclass__(kind=kind, **options)
        handles(cls)(start)
        definitions.update(dict.fromkeys((kind, *cls.kind().aliases), definition))


class Starter:
    """What the handler of workflows needs: the ledger, on a connection of its own."""

    def __init__(self, database: Database) -> None:
        self.database = database


@provides
def open_starter(settings: Settings) -> Iterator[Starter]:
    database = Database(settings.database_url, pool_size=1)
    try:
        yield Starter(database)
    finally:
        database.close()


def start(job: Workflow, ctx: Context, starter: Starter) -> Snooze:
    """Enter the workflow with its steps, and let its job wait for their end. Run again, it takes up one that failed."""
    definition = definitions[job.kind().name]
    database = starter.database
    database.write(lambda connection: starting.start(connection, database, ctx.job_id, definition))
    return Snooze(PARKED, reason="its steps run; see penstock workflows show")
