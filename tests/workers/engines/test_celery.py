"""A worker as Celery's own code sees it: an application with a task for every kind, and its signals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import celery
import pytest
from engine_jobs import QUEUE, Add, Break
from pydantic import ValidationError
from running import Running

from penstock.config.settings import Settings
from penstock.producers.senders import memory
from penstock.schemas.jobs.kind import DISPATCHER_QUEUE
from penstock.schemas.wire.codec import decode
from penstock.workers.engines.celery import app as app_module
from penstock.workers.engines.monitoring.kombu_connection import kombu_url


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> memory.MemoryBroker:
    sender = memory.MemoryBroker()
    monkeypatch.setattr(app_module, "open_sender_from", lambda *_, **__: sender)
    return sender


@pytest.fixture
def app(sender: memory.MemoryBroker) -> Iterator[celery.Celery]:
    app = app_module.make_app(Settings())
    yield app
    app.close()


def test_kinds_are_celery_tasks(app: celery.Celery) -> None:
    assert "engines.add" in app.tasks
    assert app.tasks["engines.add"].__doc__ == "Adds."


def test_a_tasks_delay_sends_a_job_our_way(app: celery.Celery, sender: memory.MemoryBroker) -> None:
    result = app.tasks["engines.add"].delay(20, b=22)
    [envelope] = sender.sent
    assert (envelope.id, envelope.kind, envelope.queue) == (result.id, "engines.add", QUEUE)
    assert decode(envelope).job == Add(a=20, b=22)


@pytest.mark.parametrize("options", [{"countdown": 60}, {"eta": datetime.now(UTC) + timedelta(minutes=1)}])
def test_a_countdown_or_eta_goes_by_the_dispatcher(
    app: celery.Celery, sender: memory.MemoryBroker, options: dict[str, object]
) -> None:
    app.tasks["engines.add"].apply_async(kwargs={"a": 1}, **options)
    assert sender.sent[0].queue == DISPATCHER_QUEUE


def test_a_task_refuses_what_does_not_validate(app: celery.Celery, sender: memory.MemoryBroker) -> None:
    with pytest.raises(ValidationError):
        app.tasks["engines.add"].delay(a="no number")
    assert sender.sent == []


def test_a_unix_socket_is_written_as_kombu_writes_it() -> None:
    assert kombu_url("unix:///run/redis.sock?db=3") == "redis+socket:///run/redis.sock?virtual_host=3"
    assert kombu_url("redis://h:1/2") == "redis://h:1/2"


def test_signals_reach_their_receivers(start_worker: Callable[..., Running]) -> None:
    worker = start_worker("celery", "engine_signals")
    added, broken = worker.producer.enqueue(Add(a=1)), worker.producer.enqueue(Break())
    added.wait(timeout=60)
    broken.wait(timeout=60)
    worker.tell("shutdown")
    assert worker.process.wait(60) == 0
    events = [json.loads(line) for line in (worker.folder / "heard.jsonl").read_text().splitlines()]
    assert [name for name, job_id, _ in events if job_id == added.id] == ["prerun", "postrun"]
    assert ["postrun", added.id, "SUCCESS"] in events
    assert [name for name, job_id, _ in events if job_id == broken.id] == ["prerun", "failure", "postrun"]
    assert "ValueError: it broke" in str(events)
    assert "4111" not in str(events)
