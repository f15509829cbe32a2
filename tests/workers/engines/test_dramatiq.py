"""A worker as Dramatiq's own code sees it: a broker with actors, and middleware that runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dramatiq
import dramatiq.broker
import pytest
from engine_jobs import QUEUE, Add, Break
from pydantic import ValidationError
from running import Running

from penstock.config.settings import Settings
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE
from penstock.schemas.states import Outcome, State
from penstock.schemas.wire.codec import decode, encode
from penstock.workers.engines.dramatiq import get_broker
from penstock.workers.engines.dramatiq.broker import PenstockBroker
from penstock.workers.engines.dramatiq.middleware import MiddlewareObserver


@pytest.fixture
def broker() -> Iterator[PenstockBroker]:
    before = dramatiq.broker.global_broker
    dramatiq.broker.global_broker = None
    broker = get_broker()
    broker.connect(Settings())
    broker._sender = MemoryBroker()
    broker.declare_kinds()
    yield broker
    dramatiq.broker.global_broker = before


def sent(broker: PenstockBroker) -> Any:
    assert isinstance(broker._sender, MemoryBroker)
    return broker._sender.sent


def test_the_broker_is_dramatiqs_and_has_an_actor_for_every_kind(broker: PenstockBroker) -> None:
    assert dramatiq.get_broker() is broker
    assert broker.get_actor("engines.add").queue_name == QUEUE
    assert QUEUE in broker.get_declared_queues()
    assert broker.middleware == []


def test_sending_an_actor_its_fields_sends_a_job(broker: PenstockBroker) -> None:
    message = broker.get_actor("engines.add").send(20, b=22)
    [envelope] = sent(broker)
    assert (envelope.kind, envelope.queue, envelope.id) == ("engines.add", QUEUE, message.message_id)
    assert decode(envelope).job == Add(a=20, b=22)


def test_a_delay_goes_by_the_dispatcher(broker: PenstockBroker) -> None:
    broker.get_actor("engines.add").send_with_options(kwargs={"a": 1}, delay=60_000)
    [envelope] = sent(broker)
    assert envelope.queue == DISPATCHER_QUEUE
    due_at = decode(envelope).due_at
    assert due_at is not None
    assert due_at > datetime.now(UTC) + timedelta(seconds=30)


def test_an_invalid_message_is_refused_by_the_sender(broker: PenstockBroker) -> None:
    with pytest.raises(ValidationError):
        broker.get_actor("engines.add").send(a="no number")
    with pytest.raises(dramatiq.errors.ActorNotFound):
        broker.enqueue(dramatiq.Message(queue_name=QUEUE, actor_name="nobody.knows", args=(), kwargs={}, options={}))
    assert sent(broker) == []


class Recorder(dramatiq.Middleware):
    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
        self.heard.append(("before", message.kwargs))

    def after_process_message(
        self, broker: dramatiq.Broker, message: dramatiq.MessageProxy, *, result: Any = None, exception: Any = None
    ) -> None:
        self.heard.append(("after", str(exception) if exception else result))

    def after_ack(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
        self.heard.append(("ack", message.message_id))

    def after_nack(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
        self.heard.append(("nack", message.failed))


def _claim(job: Any) -> Claim:
    return Claim(decode(encode(job)), 1, 1, 0, 0, datetime.now(UTC))


def test_middleware_hears_of_a_job_from_start_to_acknowledgement(broker: PenstockBroker) -> None:
    recorder = Recorder()
    broker.add_middleware(recorder)
    observer = MiddlewareObserver(broker)
    claim = _claim(Add(a=1))
    observer.started(claim)
    observer.ended(AttemptOutcome(claim, Outcome.SUCCEEDED, State.SUCCEEDED, datetime.now(UTC), result="2"))
    assert recorder.heard == [
        ("before", {"a": 1, "b": 1, "card": "***"}),
        ("after", 2),
        ("ack", claim.message.id),
    ]


def test_a_dead_letter_is_a_nack_with_its_exception(broker: PenstockBroker) -> None:
    recorder = Recorder()
    broker.add_middleware(recorder)
    observer = MiddlewareObserver(broker)
    claim = _claim(Break())
    observer.started(claim)
    observer.ended(AttemptOutcome(claim, Outcome.DEAD, State.DEAD, datetime.now(UTC), error="ValueError: it broke"))
    assert "ValueError: it broke" in recorder.heard[1][1]
    assert recorder.heard[2] == ("nack", True)


def test_middleware_without_job_hooks_builds_no_signals(broker: PenstockBroker) -> None:
    class Deaf(dramatiq.Middleware):
        def before_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None: ...

    broker.add_middleware(Deaf())
    assert MiddlewareObserver(broker).hooks == set()


def test_middleware_added_in_a_handlers_module_runs_in_the_worker(start_worker: Callable[..., Running]) -> None:
    worker = start_worker("dramatiq", "engine_middleware")
    handle = worker.producer.enqueue(Add(a=1))
    handle.wait(timeout=60)
    worker.tell("shutdown")
    assert worker.process.wait(60) == 0
    events = [json.loads(line) for line in (worker.folder / "heard.jsonl").read_text().splitlines()]
    assert events[0] == "before_worker_boot"
    assert events[-1] == "after_worker_shutdown"
    of_job = [line for line in events if isinstance(line, list) and line[1] == handle.id]
    assert [hook for hook, _ in of_job] == [
        "before_process_message",
        "after_process_message",
        "before_ack",
        "after_ack",
    ]
