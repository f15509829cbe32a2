"""Jobs and workflows of the tests."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import BaseModel

from penstock.schemas import Job, RetryPolicy
from penstock.workers import Context, Discard, handles
from penstock.workers.workflows import Sleep, Wait, Workflow, map_over, step

AT_ONCE = RetryPolicy(max_attempts=2, first_delay=0.01, max_delay=0.01)


class Synced(BaseModel):
    rows: int
    regions: list[str]


class Built(BaseModel):
    region: str
    link: str


class Decision(BaseModel):
    approved: bool
    by: str = ""


class SyncOrders(Job, kind="wf.sync", queue="wf"):
    regions: list[str]


class BuildReport(Job, kind="wf.report", queue="wf-reports", retry=AT_ONCE):
    region: str


class Mail(Job, kind="wf.mail", queue="wf", retry=AT_ONCE):
    links: tuple[str, ...] = ()
    text: str = ""


class Reserve(Job, kind="wf.reserve", queue="wf", retry=AT_ONCE):
    what: str


class Release(Job, kind="wf.release", queue="wf", retry=AT_ONCE):
    what: str


done: list[str] = []
"""Actions of the handlers, in order."""
broken: set[str] = set()
"""Names of actions that fail."""
slow: set[str] = set()
"""Names of actions that last until they are cancelled, or this is emptied."""


async def linger(what: str) -> None:
    if what in slow:
        done.append(f"begin {what}")
    while what in slow:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@handles(SyncOrders)
def sync(job: SyncOrders) -> Synced:
    done.append("sync")
    return Synced(rows=3, regions=job.regions)


@handles(BuildReport)
async def build(job: BuildReport) -> Built | Discard:
    if job.region in broken:
        raise ValueError(f"no data for {job.region}")
    if job.region == "nowhere":
        return Discard("nothing there")
    await linger(job.region)
    done.append(f"report {job.region}")
    return Built(region=job.region, link=f"https://reports/{job.region}")


@handles(Mail)
async def mail(job: Mail, ctx: Context) -> str:
    if "mail" in broken:
        raise ValueError("no mail today")
    done.append(f"mail {job.text} {' '.join(job.links)}".strip())
    return f"sent {len(job.links)}"


@handles(Reserve)
async def reserve(job: Reserve) -> str:
    if job.what in broken:
        raise ValueError(f"no {job.what} left")
    await linger(job.what)
    done.append(f"reserve {job.what}")
    return f"{job.what}-1"


@handles(Release)
async def release(job: Release) -> None:
    if f"release {job.what}" in broken:
        raise ValueError(f"cannot release {job.what}")
    done.append(f"release {job.what}")


class Nightly(Workflow, kind="wf.nightly", queue="wf", aliases=("wf.nightly.before",)):
    """Sequence, fan-out over a result, fan-in."""

    regions: list[str]

    @step
    def orders(self) -> SyncOrders:
        return SyncOrders(regions=self.regions)

    @step
    def report(self, region: str = map_over("orders.regions")) -> BuildReport:
        return BuildReport(region=region)

    @step
    def tell(self, orders: Synced, report: list[Built]) -> Mail:
        return Mail(links=tuple(built.link for built in report), text=f"{orders.rows} rows")


class Branching(Workflow, kind="wf.branching", queue="wf"):
    rows: int

    @step
    def orders(self) -> SyncOrders:
        return SyncOrders(regions=["north"] * self.rows)

    @step
    def few(self, orders: Synced) -> Mail | None:
        return Mail(text="few") if len(orders.regions) < 3 else None

    @step
    def many(self, orders: Synced) -> Mail | None:
        return Mail(text="many") if len(orders.regions) >= 3 else None

    @step
    def after_many(self, many: str) -> Mail:
        return Mail(text="after many")

    @step
    def both(self, few: str | None, many: str | None) -> Mail:
        return Mail(text=f"few={few} many={many}")


class Approved(Workflow, kind="wf.approved", queue="wf"):
    seconds: float | None = None
    lenient: bool = True

    @step
    def report(self) -> BuildReport:
        return BuildReport(region="north")

    @step
    def approval(self, report: Built) -> Wait[Decision]:
        if self.lenient and self.seconds is not None:
            return Wait(Decision, within=self.seconds, otherwise=Decision(approved=False, by="the clock"))
        return Wait(Decision, within=self.seconds)

    @step
    def tell(self, approval: Decision) -> Mail:
        return Mail(text=f"{approval.approved} by {approval.by}")


class Reminding(Workflow, kind="wf.reminding", queue="wf"):
    seconds: float

    @step
    def welcome(self) -> Mail:
        return Mail(text="welcome")

    @step(after="welcome")
    def pause(self) -> Sleep:
        return Sleep(timedelta(seconds=self.seconds))

    @step(after="pause")
    def remind(self) -> Mail:
        return Mail(text="remember")


class Trip(Workflow, kind="wf.trip", queue="wf"):
    """Compensation, in reverse."""

    @step(compensate="cancel_flight")
    def flight(self) -> Reserve:
        return Reserve(what="flight")

    def cancel_flight(self, flight: str) -> Release:
        return Release(what=flight)

    @step(after="flight", compensate="cancel_hotel")
    def hotel(self) -> Reserve:
        return Reserve(what="hotel")

    def cancel_hotel(self, hotel: str) -> Release:
        return Release(what=hotel)

    @step
    def car(self, hotel: str) -> Reserve:
        return Reserve(what="car")


class Outer(Workflow, kind="wf.outer", queue="wf"):
    """A workflow in a workflow."""

    regions: list[str]

    @step
    def inner(self) -> Nightly:
        return Nightly(regions=self.regions)

    @step
    def tell(self, inner: str) -> Mail:
        return Mail(text=f"inner {inner}")


class Late(Job, kind="wf.late", queue="wf"):
    """Without a handler, at first."""


class Single(Job, kind="wf.single", queue="wf", unique_by=("what",), unique="existing"):
    what: str


class Only(Workflow, kind="wf.only", queue="wf", unique_by=("what",), unique="replace"):
    what: str

    @step
    def single(self) -> Single:
        return Single(what=self.what)

    @step(after="single")
    def pause(self) -> Sleep:
        return Sleep(timedelta(hours=1))
