"""Jobs of the tests of traces. Children import this module again."""

from __future__ import annotations

import os
from typing import Any

from opentelemetry import trace

from penstock.producers import AsyncProducer, Producer
from penstock.producers.traces import current_traceparent
from penstock.schemas import Job, RetryPolicy, Sensitive
from penstock.workers import Context, handles
from penstock.workers.workflows import Workflow, step

QUICK = RetryPolicy(max_attempts=3, first_delay=0.02, max_delay=0.05)
MARKER = "s3cret-marker"


class OuterCoroutine(Job, kind="trace.coroutine", queue="traces"):
    """Enqueues a leaf that fails so often, and returns what its handler finds as the current trace."""

    failures: int = 1


class OuterThread(Job, kind="trace.thread", queue="traces"):
    failures: int = 1


class OuterChild(Job, kind="trace.child", queue="traces"):
    failures: int = 1


class Leaf(Job, kind="trace.leaf", queue="traces", retry=QUICK):
    """Fails in its first attempts."""

    failures: int = 0


class Login(Job, kind="trace.login", queue="traces", retry=RetryPolicy(max_attempts=1)):
    password: Sensitive[str]


def found(job: Any, ctx: Context) -> dict[str, Any]:
    ctx.enqueue(Leaf(failures=job.failures))
    return where()


def where() -> dict[str, Any]:
    """The current trace of a handler, as Penstock and as OpenTelemetry have it."""
    span = trace.get_current_span().get_span_context()
    return {"traceparent": current_traceparent(), "span": f"{span.span_id:016x}", "trace": f"{span.trace_id:032x}"}


@handles(OuterCoroutine)
async def coroutine(job: OuterCoroutine, ctx: Context) -> dict[str, Any]:
    return found(job, ctx)


@handles(OuterThread)
def thread(job: OuterThread, ctx: Context) -> dict[str, Any]:
    return found(job, ctx)


@handles(OuterChild, isolate=True)
def child(job: OuterChild, ctx: Context) -> dict[str, Any]:
    return found(job, ctx)


@handles(Leaf)
async def leaf(job: Leaf, ctx: Context) -> str:
    if ctx.attempt <= job.failures:
        raise ValueError(f"attempt {ctx.attempt}")
    return "done"


@handles(Login)
async def login(job: Login) -> None:
    raise PermissionError(f"wrong password {job.password}")


class TwoSteps(Workflow, kind="trace.workflow", queue="traces"):
    """Two leaves, the second after the first, which fails once."""

    @step
    def first(self) -> Leaf:
        return Leaf(failures=1)

    @step
    def second(self, first: str) -> Leaf:
        return Leaf()


class Suspect(Job, kind="trace.suspect", queue="ex", retry=RetryPolicy(max_attempts=1)): ...


class SuspectThread(Job, kind="trace.suspectthread", queue="ex", retry=RetryPolicy(max_attempts=1)): ...


@handles(Suspect)
async def suspect(job: Suspect) -> dict[str, Any]:
    return {"pid": os.getpid(), **where()}


@handles(SuspectThread)
def suspect_thread(job: SuspectThread) -> dict[str, Any]:
    return {"pid": os.getpid(), **where()}


class SendsCoroutine(Job, kind="trace.sendscoroutine", queue="traces"): ...


class SendsThread(Job, kind="trace.sendsthread", queue="traces"): ...


class SendsChild(Job, kind="trace.sendschild", queue="traces"): ...


@handles(SendsCoroutine)
async def sends_coroutine(job: SendsCoroutine) -> str:
    async with AsyncProducer.from_settings() as producer:
        return (await producer.enqueue(Leaf(failures=1))).id


@handles(SendsThread)
def sends_thread(job: SendsThread) -> str:
    with Producer.from_settings() as producer:
        return producer.enqueue(Leaf(failures=1)).id


@handles(SendsChild, isolate=True)
def sends_child(job: SendsChild) -> str:
    with Producer.from_settings() as producer:
        return producer.enqueue(Leaf(failures=1)).id
