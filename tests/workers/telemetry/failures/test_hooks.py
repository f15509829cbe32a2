"""`@on_failure`, and the fields of lines, in one process."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from support.polling import until

from penstock.config.log_fields import LogFields
from penstock.config.logging import setup_logging
from penstock.config.supervision import faults
from penstock.schemas import Job, RetryPolicy, Sensitive
from penstock.workers import Context, Failure, handles, on_failure
from penstock.workers.engines.inline import Inline
from penstock.workers.telemetry.failures import hooks

QUEUE = "hooked"
errors: list[weakref.ref[BaseException]] = []


class Odd(ValueError):
    pass


class Fails(Job, kind="hooked.fails", queue=QUEUE, retry=RetryPolicy(max_attempts=1)):
    note: str = ""


class Other(Job, kind="hooked.other", queue=QUEUE, retry=RetryPolicy(max_attempts=1)):
    card: Sensitive[str] = "4111-1111"


@handles(Fails)
async def fails(job: Fails, ctx: Context) -> None:
    error = Odd("it is odd")
    errors.append(weakref.ref(error))
    raise error


@handles(Other)
def other(job: Other, ctx: Context) -> None:
    def say() -> None:
        logging.getLogger("of.a.library").warning("of a thread of its own")
        ctx.log.warning("through ctx.log with %s", job.card)

    with trace.use_span(TracerProvider().get_tracer("t").start_span("s")):
        logging.getLogger("of.a.library").warning("it has %s", job.card)
        try:
            raise KeyError(job.card)
        except KeyError:
            logging.getLogger("of.a.library").exception("no card")
    thread = threading.Thread(target=say)
    thread.start()
    thread.join()
    raise ValueError(job.card)


@pytest.fixture
def inline() -> Iterator[Inline]:
    with Inline(queues=[QUEUE]) as penstock:
        yield penstock


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Failure]:
    monkeypatch.setattr(hooks, "_hooks", [])
    return []


def test_a_hook_gets_the_exception_and_nothing_keeps_it_afterwards(inline: Inline, reported: list[Failure]) -> None:
    errors.clear()
    seen: list[tuple[str, bool]] = []

    @on_failure
    def look(failure: Failure) -> None:
        seen.append((type(failure.exception).__name__, failure.is_dead))

    inline.producer.enqueue(Fails()).wait(60)
    until(lambda: seen == [("Odd", True)])

    def is_gone() -> bool:
        gc.collect()
        return errors[0]() is None

    until(is_gone, "the exception")


def test_a_hook_for_some_kinds_is_called_for_these_alone(inline: Inline, reported: list[Failure]) -> None:
    every: list[str | None] = []
    on_failure(lambda failure: every.append(failure.kind))
    on_failure(Other)(reported.append)
    inline.producer.enqueue(Fails()).wait(60)
    inline.producer.enqueue(Other()).wait(60)
    until(lambda: len(every) == 2 and reported)
    assert [failure.kind for failure in reported] == ["hooked.other"]
    assert reported[0].error == "ValueError: *** (failed 1 of 1 attempts)"


def test_a_hook_that_hangs_holds_up_no_job_and_what_waits_for_it_is_bounded(
    inline: Inline, reported: list[Failure], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks, "MOST_WAITING", 2)
    fresh = hooks.FailureHooks()
    hold, before = threading.Event(), faults["failure hooks too slow"]
    started: list[Failure] = []

    @on_failure
    def hang(failure: Failure) -> None:
        started.append(failure)
        assert hold.wait(90)

    inline.producer.enqueue(Fails()).wait(60)
    inline.producer.enqueue(Fails()).wait(60)
    failure = until(lambda: started)[0]
    for _ in range(10):
        fresh.add(failure)
    assert faults["failure hooks too slow"] - before >= 7
    assert "too slow" in caplog.text
    hold.set()
    fresh.close(60)


@pytest.mark.parametrize("wrong", [3, "text", Fails()])
def test_what_is_no_function_is_refused(wrong: Any, reported: list[Failure]) -> None:
    with pytest.raises(TypeError):
        on_failure(wrong)


def test_a_coroutine_is_refused_as_hook(reported: list[Failure]) -> None:
    async def hook(failure: Failure) -> None: ...

    with pytest.raises(TypeError, match="plain function"):
        on_failure(hook)


def test_an_applications_own_logging_gets_the_fields_by_the_filter(
    inline: Inline, reported: list[Failure], root_logger: logging.Logger
) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    handler.addFilter(LogFields())
    root_logger.addHandler(handler)
    handle = inline.producer.enqueue(Other(), tenant="acme")
    handle.wait(60)
    lines = {
        record.getMessage(): record.__dict__ for record in records if record.name.startswith(("of.", "penstock.job."))
    }
    fields = {"job_id": handle.id, "attempt": 1, "kind": "hooked.other", "queue": QUEUE, "tenant": "acme"}
    assert fields.items() <= lines["it has ***"].items()
    assert fields.items() <= lines["through ctx.log with ***"].items(), "a thread of its own has no context"
    assert len(lines["it has ***"]["trace_id"]) == 32
    assert len(lines["it has ***"]["span_id"]) == 16
    assert "job_id" not in lines["of a thread of its own"]
    assert "4111" not in lines["no card"]["exc_text"]
    assert "KeyError: '***'" in lines["no card"]["exc_text"]


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_a_line_shows_the_fields_and_a_traceback_that_is_text(
    inline: Inline,
    reported: list[Failure],
    root_logger: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    fmt: str,
) -> None:
    setup_logging("info", fmt)
    handle = inline.producer.enqueue(Fails())
    handle.wait(60)
    written: list[str] = []

    def has_line() -> bool:
        written.append(capsys.readouterr().err)
        return f"job {handle.id} (hooked.fails) is a dead letter" in "".join(written)

    until(has_line)
    text = "".join(written)
    assert "Odd: it is odd" in text
    assert ("kind=hooked.fails" if fmt == "text" else '"kind": "hooked.fails"') in text
    assert ("\nTraceback (most" if fmt == "text" else '"exception": "Traceback (most') in text
