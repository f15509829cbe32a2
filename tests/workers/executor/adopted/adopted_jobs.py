"""An adopted kind whose handlers send its job again. Children import this module again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from penstock.schemas.jobs.adopted import AdoptedJob, adopt_kind
from penstock.schemas.wire.codec import encode
from penstock.workers import Context, handles
from penstock.workers.handlers.returns import Resend

KINDS = {name: adopt_kind(AdoptedJob, f"adopted.{name}", __name__, queue="ex") for name in ("async", "thread", "child")}


def again(job: AdoptedJob, ctx: Context) -> Any:
    changed = job.with_changes({"args": [*job.args, ctx.attempt]})
    return Resend(encode(changed, id=ctx.job_id), timedelta(hours=1), failed=job.kwargs["failed"], reason="not yet")


@handles(KINDS["async"])
async def again_async(job: AdoptedJob, ctx: Context) -> Any:
    return again(job, ctx)


@handles(KINDS["thread"])
def again_in_thread(job: AdoptedJob, ctx: Context) -> Any:
    return again(job, ctx)


@handles(KINDS["child"], isolate=True)
def again_in_child(job: AdoptedJob, ctx: Context) -> Any:
    return again(job, ctx)
