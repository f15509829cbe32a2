"""Runs of actors, by Dramatiq's own code, with what they send caught."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dramatiq
import dramatiq.broker
import dramatiq.results
import pytest
from support.polling import WAIT_SECONDS

from penstock.config.errors import BrokerUnavailable, ConfigError, InvalidJob, PayloadTooLarge
from penstock.config.settings import Settings
from penstock.producers.contrib.dramatiq import DirectSending, adopt
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE, registry
from penstock.schemas.wire.codec import Envelope, decode
from penstock.workers.engines.dramatiq.adopted.application import Application
from penstock.workers.engines.dramatiq.adopted.job import ActorJob
from penstock.workers.engines.dramatiq.adopted.run import ActorRunner
from penstock.workers.executor.attempt.outcome import JsonResult
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.returns import Discard, JobCancelled, Resend, why_final


class Sent(list[Envelope]):
    """A sender that keeps what it is to send, or is of a broker that is unavailable."""

    unavailable = False

    def send(self, envelopes: Sequence[Envelope]) -> None:
        if self.unavailable:
            raise BrokerUnavailable("Redis at nowhere")
        self.extend(envelopes)


class LocalBroker(dramatiq.Broker):
    def declare_queue(self, queue_name: str) -> None:
        self.queues[queue_name] = None

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        return "elsewhere"


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    before = dramatiq.broker.global_broker
    broker = LocalBroker()
    dramatiq.set_broker(broker)
    yield broker
    dramatiq.broker.global_broker = before


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def runner(broker: LocalBroker, sent: Sent) -> ActorRunner:
    runner = ActorRunner(broker, Settings())
    runner._sending._sender = sent  # type: ignore[assignment]
    return runner


def run(runner: ActorRunner, kind: str, *args: Any, **options: Any) -> tuple[Any, Context]:
    """The value that an actor's message ends with, and its context."""
    ctx = Context(job_id="m1", attempt=1, kind=kind, queue="default", worker="w")
    request = {"options": options, "message_timestamp": int(datetime.now(UTC).timestamp() * 1000)}
    return runner.run(ActorJob(args=list(args), request=request), ctx), ctx


def test_a_message_that_is_enqueued_again_becomes_the_outcome(
    broker: LocalBroker, runner: ActorRunner, sent: Sent
) -> None:
    @dramatiq.actor(min_backoff=60_000)
    def fail(number: int) -> None:
        raise OSError("disk full")

    outcome, _ = run(runner, "fail", 7)
    assert isinstance(outcome, Resend)
    assert (outcome.failed, outcome.reason) == (True, "OSError: disk full")
    assert timedelta(seconds=25) < outcome.after < timedelta(seconds=125)
    assert "raise OSError" in (outcome.traceback or "")
    assert outcome.envelope.id == "m1"
    payload = json.loads(outcome.envelope.body)[1]
    assert payload["args"] == [7]
    assert payload["request"]["options"]["retries"] == 1
    assert sent == []


def test_an_actor_that_enqueues_its_own_message_costs_no_attempt(broker: LocalBroker, runner: ActorRunner) -> None:
    broker.add_middleware(dramatiq.middleware.CurrentMessage(), before=ActorRunner)

    @dramatiq.actor
    def again() -> None:
        broker.enqueue(dramatiq.middleware.CurrentMessage.get_current_message(), delay=1000)

    outcome, _ = run(runner, "again")
    assert isinstance(outcome, Resend)
    assert (outcome.failed, outcome.reason) == (False, "")


def test_a_failed_message_raises_the_actors_error(broker: LocalBroker, runner: ActorRunner) -> None:
    @dramatiq.actor(throws=PermissionError)
    def fail() -> None:
        raise PermissionError("no")

    with pytest.raises(PermissionError, match="no") as failure:
        run(runner, "fail")
    assert why_final(failure.value) == "PermissionError is among the actor's throws"


def test_a_failure_says_that_retries_are_exhausted(broker: LocalBroker, runner: ActorRunner) -> None:
    @dramatiq.actor(max_retries=3)
    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full") as failure:
        run(runner, "fail", retries=3)
    assert why_final(failure.value) == "the actor's retries are exhausted: max_retries = 3"


class Skipping(dramatiq.Middleware):
    def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
        raise dramatiq.middleware.SkipMessage


def test_a_skipped_message_is_discarded(broker: LocalBroker, runner: ActorRunner) -> None:
    @dramatiq.actor
    def skipped() -> None:
        raise AssertionError

    broker.add_middleware(Skipping(), before=ActorRunner)
    assert run(runner, "skipped")[0] == Discard("skipped by a middleware")


def piped(broker: LocalBroker, result: Any) -> dict[str, Any]:
    """Options of a message of `first`, which returns the result, and of which `second` follows."""

    @dramatiq.actor
    def first() -> Any:
        return result

    @dramatiq.actor
    def second(result: int) -> None: ...

    return dict((first.message() | second.message()).messages[0].options)


def test_what_follows_is_sent_at_once(broker: LocalBroker, runner: ActorRunner, sent: Sent) -> None:
    value, ctx = run(runner, "first", **piped(broker, 3))
    assert value == JsonResult("3")
    assert [json.loads(envelope.body)[1]["args"] for envelope in sent] == [[3]]
    assert ctx.outgoing == []


def test_what_follows_is_part_of_the_outcome_without_the_broker(
    broker: LocalBroker, runner: ActorRunner, sent: Sent
) -> None:
    sent.unavailable = True
    _, ctx = run(runner, "first", **piped(broker, 3))
    assert [json.loads(envelope.body)[1]["args"] for envelope in ctx.outgoing] == [[3]]


def test_a_result_that_cannot_be_passed_on_is_a_failure(broker: LocalBroker, runner: ActorRunner) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        run(runner, "first", **piped(broker, object()))


@pytest.mark.parametrize(
    ("result", "start"),
    [("x" * 99, '{"repr": "'), ({1: object()}, '{"repr": "{1: <object'), ([1.5, {"a": None}], '[1.5,{"a":null}]')],
    ids=["too large", "not JSON", "JSON"],
)
def test_the_ledger_has_the_result(broker: LocalBroker, sent: Sent, result: Any, start: str) -> None:
    @dramatiq.actor
    def first() -> Any:
        return result

    value, _ = run(ActorRunner(broker, Settings(max_result_bytes_inline=90)), "first")
    assert isinstance(value, JsonResult)
    assert value.text.startswith(start)
    assert json.loads(value.text)


def test_a_job_without_a_message_has_the_age_of_the_job(broker: LocalBroker, runner: ActorRunner) -> None:
    @dramatiq.actor(max_age=60_000)
    def count(number: int) -> None: ...

    assert runner.run(ActorJob(args=[1]), Context(job_id="s1", kind="count", queue="default")) is None


def test_a_time_limit_ends_an_actor(broker: LocalBroker, runner: ActorRunner) -> None:
    broker.emit_after("process_boot")

    @dramatiq.actor(time_limit=1, max_retries=0)
    def endless() -> None:
        while True:
            pass

    with pytest.raises(RuntimeError, match="TimeLimitExceeded"):
        run(runner, "endless")


class Results(dramatiq.results.Results):
    """Keeps what it would store."""

    def __init__(self) -> None:
        super().__init__(backend=self, store_results=True)  # type: ignore[arg-type]
        self.stored: list[Any] = []

    def store_exception(self, message: Any, exception: BaseException, ttl: int) -> None:
        self.stored.append(type(exception).__name__)


def cancel_soon(ctx: Context, started: threading.Event) -> None:
    """Cancel a job as the executor does, once its actor runs."""

    def cancel() -> None:
        assert started.wait(WAIT_SECONDS)
        ctx.cancel()
        assert ctx.interrupt is not None
        ctx.interrupt()

    threading.Thread(target=cancel, daemon=True).start()


@pytest.mark.parametrize("sort", ["plain", "async"])
def test_cancelling_interrupts_an_actor(broker: LocalBroker, runner: ActorRunner, sent: Sent, sort: str) -> None:
    """Its message has failed for the application's middleware, and is not tried again."""
    results, started, cleaned = Results(), threading.Event(), threading.Event()
    broker.add_middleware(results, before=ActorRunner)
    broker.add_middleware(dramatiq.middleware.AsyncIO(), before=ActorRunner)
    worker: Any = None
    broker.emit_before("worker_boot", worker)

    @dramatiq.actor
    def plain() -> None:
        started.set()
        try:
            while True:
                time.sleep(0.01)
        finally:
            cleaned.set()

    @dramatiq.actor(actor_name="async", max_retries=0, on_retry_exhausted="plain")
    async def coroutine() -> None:
        await asyncio.sleep(0.3)  # until its thread waits for it: before that Dramatiq would leave it behind
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cleaned.set()

    ctx = Context(job_id="m1", kind=sort, queue="default", worker="w")
    cancel_soon(ctx, started)
    with pytest.raises(JobCancelled, match="m1"):
        runner.run(ActorJob(request={"options": {}}), ctx)
    assert cleaned.is_set()
    assert (results.stored, sent) == (["Stopped"], [])
    broker.emit_after("worker_shutdown", worker)


def test_an_actor_that_ends_before_it_is_interrupted_has_ended(broker: LocalBroker, runner: ActorRunner) -> None:
    @dramatiq.actor
    def quick() -> None: ...

    value, ctx = run(runner, "quick")
    assert value is None
    assert ctx.interrupt is not None
    ctx.interrupt()
    assert run(runner, "quick")[0] is None  # the thread's next actor is left alone


def test_messages_of_a_web_process_go_to_our_queues(
    broker: LocalBroker, monkeypatch: pytest.MonkeyPatch, sent: Sent
) -> None:
    monkeypatch.setattr("penstock.producers.contrib.dramatiq.open_sender_from", lambda settings: sent)

    @dramatiq.actor(queue_name="mails", priority=-1)
    def mail(text: str, copies: int = 1) -> None: ...

    Application(broker, ()).declare_kinds()
    adopt(broker, Settings(max_payload_bytes=2000))
    now = mail.send("a", copies=2)
    later = mail.send_with_options(args=("b",), delay=60_000, max_age=5)
    first, second = (decode(envelope) for envelope in sent)
    assert (first.id, first.queue, first.priority) == (now.message_id, "mails", "high")
    assert isinstance(first.job, ActorJob)
    assert (first.job.args, first.job.kwargs) == (["a"], {"copies": 2})
    assert sent[1].queue == DISPATCHER_QUEUE
    assert second.due_at is not None
    assert second.due_at > datetime.now(UTC) + timedelta(seconds=50)
    assert second.job.request["options"] == {"max_age": 5}  # type: ignore[attr-defined]
    assert "eta" in later.options
    with pytest.raises(PayloadTooLarge, match="2000"):
        mail.send("c" * 2000)
    with pytest.raises(InvalidJob, match="message_id"):
        broker.enqueue(mail.message("d").copy(message_id="x" * 200))
    assert len(sent) == 2
    elsewhere = dramatiq.Message(queue_name="mails", actor_name="of.another", args=(), kwargs={}, options={})
    assert broker.enqueue(elsewhere) == "elsewhere"
    registry.discard(registry["mail"])


def test_adopt_takes_a_broker() -> None:
    with pytest.raises(ConfigError, match="adopt takes a Dramatiq broker"):
        adopt(DirectSending)
