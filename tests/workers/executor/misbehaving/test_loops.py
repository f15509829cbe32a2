"""Each loop of a worker goes on after an exception, and jobs run."""

from __future__ import annotations

from typing import Any

import pytest
from support.polling import until
from workers.executor.bench import Add, Bench

from penstock.config import supervision
from penstock.schemas import State
from penstock.workers.executor.heartbeat import Heartbeat
from penstock.workers.executor.intake import Intake
from penstock.workers.executor.overdue import Overdue
from penstock.workers.executor.runtime.io_threads import IoThreads
from penstock.workers.executor.runtime.loop_thread import LoopThread
from penstock.workers.executor.watchdog import Watchdog


@pytest.mark.parametrize("error", [RuntimeError("odd"), SystemExit(3)], ids=repr)
@pytest.mark.parametrize(
    ("owner", "name"),
    [(Heartbeat, "run"), (Intake, "_run"), (LoopThread, "_run"), (Overdue, "run"), (Watchdog, "_run")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_loop_goes_on_after_an_exception_and_jobs_run(
    bench: Bench, owner: type[Any], name: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE", 0.001)
    starts = []
    original = getattr(owner, name)

    def body(self: Any) -> Any:
        starts.append(1)
        if len(starts) == 1:
            raise error
        return original(self)

    monkeypatch.setattr(owner, name, body)
    bench.worker()
    assert bench.run(Add(a=1, b=2)).state == State.SUCCEEDED
    until(lambda: len(starts) == 2)


def test_an_error_of_the_beat_behind_a_slow_call_is_the_watchdogs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beats = []

    def beat(_watchdog: Watchdog) -> None:
        beats.append(1)
        if len(beats) == 1:
            raise RuntimeError("odd")

    monkeypatch.setattr(IoThreads, "waits_seconds", property(lambda _: 1e9))
    monkeypatch.setattr(Watchdog, "_beat", beat)
    before = supervision.failures["penstock watchdog"]
    bench.worker()
    until(lambda: supervision.failures["penstock watchdog"] == before + 1)
    assert "RuntimeError: odd" in caplog.text
    until(lambda: len(beats) > 1)
