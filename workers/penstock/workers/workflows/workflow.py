"""`Workflow`: a graph of jobs, written as a class. It is a job itself, and ends with its last step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penstock.config.errors import KindError
from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.workflows.start import start_workflow
from penstock.schemas.jobs.job import Job
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import handles
from penstock.workers.handlers.resources import provides
from penstock.workers.handlers.returns import Park
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

    It is started like any job: by `producer.enqueue(MonthEnd(month=…))`, an outbox or a schedule. Its handle waits for
    the end of the last step. Its result is that of the one step that no other needs.

    Class keywords: those of `Job`, except `timeout` and `track`, which would apply to its start only.

    Raises:
        KindError: a step cannot be run as it is written: it names a method that is not a step, waits for itself, makes
            no job, or takes a result of another type than its step's handler returns.
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


@provides
def open_ledger(settings: Settings) -> Iterator[Database]:
    """The ledger, in a child process; a worker has it open."""
    database = Database(settings.database_url, pool_size=1)
    try:
        yield database
    finally:
        database.close()


def start(job: Workflow, ctx: Context, ledger: Database) -> Park:
    """Record the workflow with its steps, and let its job wait for their end. A second run resumes one that failed."""
    definition = definitions[job.kind().name]
    ledger.write(lambda connection: start_workflow(connection, ledger, ctx.job_id, definition))
    return Park("its steps run; see penstock workflows show")
