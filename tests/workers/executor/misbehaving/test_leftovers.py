"""Leftovers of a job: context variables that it binds, and the memory of one that fails, must not outlive it."""

from __future__ import annotations

import contextvars
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from support.polling import until
from workers.executor.bench import Bench

from penstock.ledger.transitions.claim import Claim
from penstock.schemas import Job, RetryPolicy
from penstock.workers import handles
from penstock.workers.executor.runtime.observers import Observer

tenant = contextvars.ContextVar("tenant", default="no one")
trace = contextvars.ContextVar("trace", default="none")


class BindInThread(Job, kind="ex.cv.thread", queue="ex"):
    tenant: str


class BindInCoroutine(Job, kind="ex.cv.coroutine", queue="ex"):
    tenant: str


@handles(BindInThread)
def bind_in_thread(job: BindInThread) -> list[str]:
    return bind(job.tenant)


@handles(BindInCoroutine)
async def bind_in_coroutine(job: BindInCoroutine) -> list[str]:
    return bind(job.tenant)


def bind(value: str) -> list[str]:
    before = [tenant.get(), trace.get()]
    tenant.set(value)
    return before


class Binding(Observer):
    """An observer that binds a variable for the handler, as a Dramatiq middleware or a receiver of a signal may."""

    def started(self, claim: Claim) -> None:
        if claim.message.tenant is not None:
            trace.set(claim.message.tenant)


@pytest.mark.parametrize("kind", [BindInThread, BindInCoroutine])
def test_jobs_see_nothing_that_others_have_bound(bench: Bench, kind: Callable[..., Any]) -> None:
    bench.worker(concurrency=4, start=False).executor.observers.append(Binding())
    handles = [bench.producer.enqueue(kind(tenant=f"t{n}"), tenant=f"t{n}" if n % 2 else None) for n in range(40)]
    bench.workers[0].start()  # with all jobs in its reach, it begins each at the end of another
    results = [handle.result(timeout=60) for handle in handles]
    assert results == [["no one", f"t{n}" if n % 2 else "none"] for n in range(40)]


class FailInThread(Job, kind="ex.fail.thread", queue="ex", retry=RetryPolicy(max_attempts=1)): ...


class FailInCoroutine(Job, kind="ex.fail.coroutine", queue="ex", retry=RetryPolicy(max_attempts=1)): ...


class Held:
    """An object that a handler has in a local variable when it fails."""


held: list[weakref.ref[Held]] = []


@handles(FailInThread)
def fail_in_thread(job: FailInThread) -> None:
    fail()


@handles(FailInCoroutine)
async def fail_in_coroutine(job: FailInCoroutine) -> None:
    fail()


def fail() -> None:
    local = Held()
    held.append(weakref.ref(local))
    raise ValueError("boom")


@pytest.mark.parametrize("kind", [FailInThread, FailInCoroutine])
def test_failed_jobs_leave_no_frames_for_the_garbage_collector(bench: Bench, kind: Callable[[], Any]) -> None:
    bench.worker()
    held.clear()
    gc.disable()  # a worker's runs rarely
    try:
        for handle in [bench.producer.enqueue(kind()) for _ in range(100)]:
            assert handle.wait(timeout=60).state == "dead"
        assert len(held) == 100
        until(lambda: [reference for reference in held if reference() is not None] == [])
    finally:
        gc.enable()
