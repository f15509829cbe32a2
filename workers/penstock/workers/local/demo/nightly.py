"""The demo's workflow: a sync, a report for each town, and one mail with links to all of them."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

from penstock.schemas.builtin.emails import SendEmail
from penstock.schemas.builtin.reports import BuildReport, ReportBuilt
from penstock.schemas.builtin.syncs import RunSync, SyncFinished
from penstock.schemas.jobs.job import Job
from penstock.workers.handlers.registry import handles
from penstock.workers.workflows import Workflow, map_over, step

OFFICE = "office@example.com"


class FindTowns(Job, kind="demo.towns", queue="demo"):
    """Find the towns of all orders.

    Attributes:
        database: path of the orders' SQLite.
    """

    database: str


@handles(FindTowns)
async def find_towns(job: FindTowns) -> list[str]:
    def select_towns() -> list[str]:
        with closing(sqlite3.connect(job.database)) as connection:
            return [town for (town,) in connection.execute("SELECT DISTINCT town FROM orders ORDER BY town")]

    return await asyncio.to_thread(select_towns)


class Nightly(Workflow, kind="demo.nightly", queue="demo"):
    """Attributes: orders: path of the orders' SQLite. files: where links to the storage begin."""

    orders: str
    files: str

    @step
    def sync(self) -> RunSync:
        return RunSync(sync="customers")

    @step(after="sync")
    def towns(self) -> FindTowns:
        return FindTowns(database=self.orders)

    @step
    def report(self, town: str = map_over("towns")) -> BuildReport:
        return BuildReport(report="town", parameters={"town": town})

    @step
    def mail(self, sync: SyncFinished, report: list[ReportBuilt]) -> SendEmail:
        links = [f"{built.parameters['town']}, {built.rows:,} orders: {self.files}/{built.key}" for built in report]
        text = "\n".join([f"{sync.fetched:,} customers have changed.", "", *links])
        return SendEmail(to=(OFFICE,), subject=f"{len(report)} reports of last night", text=text)
