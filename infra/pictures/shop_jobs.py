"""Kinds of a small shop, with handlers that wait, fail and crash as real ones do. For the pictures."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from datetime import timedelta

from pydantic import BaseModel

from penstock.schemas import Concurrency, Job, RetryPolicy
from penstock.workers import Permanent, Snooze, handles
from penstock.workers.workflows import Wait, Workflow, map_over, step

PATIENT = RetryPolicy(max_attempts=6, first_delay=2, factor=2)


class SendMail(Job, kind="mail.send", queue="emails", retry=PATIENT): ...


class SyncOrders(Job, kind="orders.sync", queue="syncs", retry=PATIENT): ...


class Charge(Job, kind="card.charge", queue="payments", limits=(Concurrency(3),)): ...


class RenderReport(Job, kind="report.render", queue="reports", retry=RetryPolicy(max_attempts=2, first_delay=1)): ...


class ResizeImage(Job, kind="image.resize", queue="images"):
    harmful: bool = False


class Heartbeat(Job, kind="shop.heartbeat", queue="syncs"): ...


class Regions(BaseModel):
    regions: list[str]


class Decision(BaseModel):
    approved: bool


class FindRegions(Job, kind="regions.find", queue="syncs"): ...


class RegionReport(Job, kind="report.region", queue="reports"):
    region: str


class MonthEnd(Workflow, kind="month.end"):
    """A report for each region, a person's approval, and a mail."""

    month: int

    @step
    def find(self) -> FindRegions:
        return FindRegions()

    @step
    def report(self, region: str = map_over("find.regions")) -> RegionReport:
        return RegionReport(region=region)

    @step(after="report")
    def approval(self) -> Wait[Decision]:
        return Wait(Decision, within=timedelta(days=3), otherwise=Decision(approved=False))

    @step
    def mail(self, approval: Decision) -> SendMail | None:
        return SendMail() if approval.approved else None


@handles(SendMail)
async def send_mail(job: SendMail) -> None:
    await asyncio.sleep(random.lognormvariate(-3.0, 0.8))
    if random.random() < 0.04:
        raise ConnectionError("the mail server closed the connection")
    if random.random() < 0.0005:
        raise Permanent("no such mailbox")


@handles(SyncOrders)
async def sync_orders(job: SyncOrders) -> Snooze | None:
    await asyncio.sleep(random.lognormvariate(-1.5, 0.7))
    if random.random() < 0.02:
        raise TimeoutError("the warehouse did not answer")
    return Snooze(timedelta(seconds=5)) if random.random() < 0.05 else None


@handles(Charge)
async def charge(job: Charge) -> None:
    await asyncio.sleep(random.lognormvariate(-1.2, 0.4))


@handles(RenderReport)
def render_report(job: RenderReport) -> None:
    time.sleep(random.lognormvariate(-0.5, 0.6))
    if random.random() < 0.05:
        raise ValueError("a column is missing")


@handles(ResizeImage)
def resize_image(job: ResizeImage) -> None:
    if job.harmful:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(random.lognormvariate(-2.5, 0.5))


@handles(FindRegions)
async def find_regions(job: FindRegions) -> Regions:
    return Regions(regions=random.sample(["north", "east", "south", "west"], random.randrange(2, 5)))


@handles(RegionReport)
def report_region(job: RegionReport) -> None:
    time.sleep(random.lognormvariate(-0.5, 0.6))


@handles(Heartbeat)
async def heartbeat(job: Heartbeat) -> None: ...
