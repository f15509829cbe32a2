"""Jobs whose worker is killed at one exact point on their way, the first time they get there."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from acme import append
from sqlalchemy.orm import Session

from penstock.schemas import Job
from penstock.workers import Context, handles

EFFECTS = sa.Table(
    "promise_effects",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.String(64), nullable=False),
)
"""Rows written with `ctx.session`. No unique constraint: the tests look for second rows."""


class Pointed(Job):
    """`file` takes a line for each thing that is done outside; `point` says where the worker dies."""

    file: str
    point: str


class Charge(Pointed, kind="promise.charge", queue="acme", delivery="once"): ...


class ChargeAsync(Pointed, kind="promise.chargeasync", queue="acme", delivery="once"): ...


class Store(Pointed, kind="promise.store", queue="acme", delivery="once"): ...


class StoreAsync(Pointed, kind="promise.storeasync", queue="acme", delivery="once"): ...


class Most(Pointed, kind="promise.most", queue="acme", delivery="at_most_once"): ...


class Gated(Pointed, kind="promise.gated", queue="acme", delivery="once"):
    """Waits for the file `point` before it charges."""


class Next(Job, kind="promise.next", queue="nobody"):
    """Job that a handler enqueues. No worker consumes its queue, so that it can be counted."""

    of: str


_armed: dict[str, str] = {}
"""The marker file of a death to come, by the beginning of the SQL whose commit it comes before."""


def die(job: Pointed, point: str) -> None:
    marker = f"{job.file}.killed"
    if job.point == point and not os.path.exists(marker):
        _kill(marker)


def _kill(marker: str) -> None:
    Path(marker).touch()
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # a thread may go on for a moment after the signal was sent


def arm(job: Pointed, point: str, sql: str) -> None:
    """Die when a transaction that ran such SQL is about to be committed."""
    marker = f"{job.file}.killed"
    if job.point == point and not os.path.exists(marker):
        _armed[sql] = marker


@sa.event.listens_for(sa.Engine, "before_cursor_execute")
def _note(connection: sa.Connection, _cursor: Any, statement: str, *_: Any) -> None:
    for sql, marker in _armed.items():
        if statement.startswith(sql):
            connection.info["dies of"] = marker


@sa.event.listens_for(sa.Engine, "commit")
def _before_commit(connection: sa.Connection) -> None:
    if marker := connection.info.pop("dies of", None):
        _kill(marker)


@sa.event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    if job := session.info.get("job"):
        die(job, "committed")


def charge(job: Pointed, effect_id: str) -> str:
    die(job, "started")
    append(job.file, f"charge {effect_id}")
    die(job, "happened")
    arm(job, "confirming", "UPDATE penstock_effects")
    return effect_id


def find(job: Pointed, effect_id: str) -> str | None:
    charged = Path(job.file).exists() and f"charge {effect_id}" in Path(job.file).read_text()
    append(f"{job.file}.asked", effect_id)
    return effect_id if charged else None


@handles(Charge)
def handle_charge(job: Charge, ctx: Context) -> str:
    ctx.enqueue(Next(of=ctx.job_id))
    arm(job, "beginning", "INSERT INTO penstock_effects")
    ask = None if job.file.endswith("unasked") else lambda effect_id: find(job, effect_id)
    receipt: str = ctx.once("charge").run(lambda effect_id: charge(job, effect_id), ask=ask)
    die(job, "confirmed")
    return receipt


@handles(ChargeAsync)
async def handle_charge_async(job: ChargeAsync, ctx: Context) -> str:
    ctx.enqueue(Next(of=ctx.job_id))
    arm(job, "beginning", "INSERT INTO penstock_effects")
    receipt: str = await ctx.once("charge").run(
        lambda effect_id: charge(job, effect_id), ask=lambda effect_id: find(job, effect_id)
    )
    die(job, "confirmed")
    return receipt


@handles(Store)
def handle_store(job: Store, ctx: Context) -> None:
    ctx.enqueue(Next(of=ctx.job_id))
    arm(job, "committing", "INSERT INTO promise_effects")
    ctx.session.info["job"] = job
    ctx.session.execute(sa.insert(EFFECTS).values(job_id=ctx.job_id))
    die(job, "written")


@handles(StoreAsync)
async def handle_store_async(job: StoreAsync, ctx: Context) -> None:
    ctx.enqueue(Next(of=ctx.job_id))
    arm(job, "committing", "INSERT INTO promise_effects")
    ctx.session.sync_session.info["job"] = job
    await ctx.session.execute(sa.insert(EFFECTS).values(job_id=ctx.job_id))
    die(job, "written")


@handles(Most)
def handle_most(job: Most) -> None:
    append(job.file, "ran")
    die(job, "ran")


@handles(Gated)
def handle_gated(job: Gated, ctx: Context) -> None:
    append(f"{job.file}.waiting", str(os.getpid()))
    while not os.path.exists(job.point):
        time.sleep(0.02)
    ctx.once("charge").run(lambda effect_id: append(job.file, f"charge {effect_id}"))
