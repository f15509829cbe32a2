"""A shop's kinds, handlers and workflow, for workers, a dispatcher and a console of the tests' own."""

from __future__ import annotations

import asyncio
from pathlib import Path

from penstock.schemas import Job, RetryPolicy
from penstock.workers import handles
from penstock.workers.workflows import Workflow, step

ONE_ATTEMPT = RetryPolicy(max_attempts=1)
REPORT_SECONDS = 2.0


class Charge(Job, kind="shop.charge", queue="shop", retry=ONE_ATTEMPT):
    """Fails unless its amount is positive."""

    customer: str
    amount: int


class Letter(Job, kind="shop.letter", queue="shop"):
    to: str


class Parcel(Job, kind="shop.parcel", queue="shop"):
    number: int


class Report(Job, kind="shop.report", queue="reports", unique_by=("day",), unique="reject"):
    """On record in the ledger from the moment it is enqueued, since it is unique."""

    day: int


class Reserve(Job, kind="shop.reserve", queue="shop"):
    thing: str


class Invoice(Job, kind="shop.invoice", queue="shop", retry=ONE_ATTEMPT):
    """Fails until the file exists."""

    printer: str


class Order(Workflow, kind="shop.order", queue="shop"):
    printer: str

    @step
    def reserve(self) -> Reserve:
        return Reserve(thing="lamp")

    @step(after="reserve")
    def invoice(self) -> Invoice:
        return Invoice(printer=self.printer)

    @step(after="invoice")
    def letter(self) -> Letter:
        return Letter(to="customer")


@handles(Charge)
async def charge(job: Charge) -> int:
    if job.amount <= 0:
        raise ValueError("the card was refused")
    return job.amount


@handles(Letter)
async def write_letter(job: Letter) -> str:
    return job.to


@handles(Parcel)
async def send_parcel(job: Parcel) -> int:
    return job.number


@handles(Report)
async def build_report(job: Report) -> int:
    await asyncio.sleep(REPORT_SECONDS)
    return job.day


@handles(Reserve)
async def reserve(job: Reserve) -> str:
    return job.thing


@handles(Invoice)
def print_invoice(job: Invoice) -> None:
    if not Path(job.printer).exists():
        raise ValueError("the printer does not answer")
