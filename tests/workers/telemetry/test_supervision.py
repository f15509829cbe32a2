"""Loops of workers, dispatchers and gateways: whatever one meets, it goes on, or its process ends with a reason."""

from __future__ import annotations

import ast
import asyncio
import importlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.polling import until, until_async
from workers.telemetry.loops import BODIES
from workers.telemetry.unsupervised import POOLS, TASKS, THREADS

from penstock.config import supervision

ROOTS = {
    name: Path(importlib.import_module(f"penstock.{name}").__path__[0]) for name in ("config", "producers", "workers")
}


def callers(*names: str) -> set[str]:
    """Files of config, producers and workers that call, or derive from, one of these."""
    files = set()
    for root_name, root in ROOTS.items():
        for path in root.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                used = (
                    [node.func] if isinstance(node, ast.Call) else node.bases if isinstance(node, ast.ClassDef) else []
                )
                for item in used:
                    if (item.attr if isinstance(item, ast.Attribute) else getattr(item, "id", "")) in names:
                        files.add(f"{root_name}/{path.relative_to(root).as_posix()}")
    return files


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(supervision, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(supervision, "FIRST_PAUSE", 0.001)
    yield
    supervision.on_give_up(None)


def failing(times: int, error: BaseException, stopping: threading.Event) -> tuple[Callable[[], None], list[int]]:
    """A body that raises so often, and then runs until it is stopped."""
    calls: list[int] = []

    def body() -> None:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error
        stopping.wait()

    return body, calls


def test_each_thread_is_supervised_or_ends_by_itself() -> None:
    assert callers("Thread", "Timer", "start_new_thread") == set(THREADS)


def test_each_task_is_supervised_or_ends_by_itself() -> None:
    assert callers("create_task", "ensure_future", "spawn", "TaskGroup", "create_task_group") == set(TASKS)


def test_each_pool_of_threads_runs_single_calls() -> None:
    assert callers("ThreadPoolExecutor", "HandlerThreads", "ProcessPoolExecutor") == POOLS


def test_each_supervised_loop_is_in_the_table() -> None:
    assert callers("start_thread", "keep_running") == set(BODIES)


@pytest.mark.parametrize("error", [ValueError("odd"), SystemExit(3), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_thread_goes_on_after_any_exception(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    stopping = threading.Event()
    body, calls = failing(2, error, stopping)
    before = supervision.failures["a loop"]
    thread = supervision.start_thread("a loop", body, stopping)
    until(lambda: len(calls) == 3)
    assert supervision.failures["a loop"] == before + 2
    assert [record.exc_info is not None for record in caplog.records] == [True, True]
    assert f"a loop failed with {type(error).__name__}" in caplog.text
    stopping.set()
    thread.join(60)
    assert not thread.is_alive()


def test_an_outage_has_a_few_reasons_each_of_them_once() -> None:
    outage = supervision.Outage()
    assert [outage.is_new(ValueError(text)) for text in ("cut", "refused", "cut", "refused")] == [
        True,
        True,
        False,
        False,
    ]
    assert sum(outage.is_new(ValueError(str(number))) for number in range(100)) == supervision.MOST_REASONS - 2
    outage.end()
    assert outage.is_new(ValueError("cut"))


def test_a_thread_that_returns_unasked_is_started_again() -> None:
    stopping = threading.Event()
    calls: list[int] = []

    def body() -> None:
        calls.append(1)
        if len(calls) > 1:
            stopping.wait()

    thread = supervision.start_thread("a short loop", body, stopping)
    until(lambda: len(calls) == 2)
    stopping.set()
    thread.join(60)
    assert supervision.failures["a short loop"] == 1


def test_a_thread_that_is_stopped_after_a_failure_gets_to_end_in_order() -> None:
    stopping, ended = threading.Event(), threading.Event()

    def body() -> None:
        if not stopping.is_set():
            stopping.set()
            raise ValueError("odd")
        ended.set()

    supervision.start_thread("a loop that closes", body, stopping).join(60)
    assert ended.is_set()


def test_a_loop_that_fails_again_and_again_gives_up_with_a_reason() -> None:
    stopping = threading.Event()
    reasons: list[str] = []
    supervision.on_give_up(reasons.append)
    body, _ = failing(10**9, ValueError("always"), stopping)
    supervision.start_thread("a broken loop", body, stopping)
    assert until(lambda: reasons)[0].startswith("a broken loop has failed 12 times in a row")
    assert "ValueError('always')" in reasons[0]
    stopping.set()


def test_a_loop_that_is_not_vital_never_gives_up() -> None:
    stopping = threading.Event()
    reasons: list[str] = []
    supervision.on_give_up(reasons.append)
    body, calls = failing(10**9, ValueError("always"), stopping)
    supervision.start_thread("a broken side loop", body, stopping, vital=False)
    until(lambda: len(calls) > 2 * supervision.MOST_FAILURES)
    stopping.set()
    assert not reasons


def test_failures_before_a_healthy_stretch_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "HEALTHY_SECONDS", -1.0)
    stopping = threading.Event()
    reasons: list[str] = []
    supervision.on_give_up(reasons.append)
    body, calls = failing(10**9, ValueError("now and then"), stopping)
    supervision.start_thread("a loop that fails now and then", body, stopping)
    until(lambda: len(calls) > 2 * supervision.MOST_FAILURES)
    stopping.set()
    assert not reasons


@pytest.mark.parametrize(
    "error", [ValueError("odd"), SystemExit(3), asyncio.CancelledError(), RuntimeError("odd")], ids=repr
)
def test_a_task_goes_on_after_any_exception_and_ends_when_it_is_cancelled(error: BaseException) -> None:
    async def scenario() -> None:
        calls: list[int] = []

        async def body() -> None:
            calls.append(1)
            if len(calls) <= 2:
                raise error
            await asyncio.sleep(3600)

        task = asyncio.create_task(supervision.keep_running("a task", body))
        await until_async(lambda: len(calls) == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
