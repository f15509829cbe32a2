"""Events of both engines, as a stock receiver of Celery's events gets them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from engine_jobs import Add, Break, End, Sleep
from running import Running
from support.polling import until

from penstock.schemas.wire.codec import decode, encode
from penstock.workers.engines.monitoring import events
from penstock.workers.engines.monitoring.event_messages import format_fields
from penstock.workers.engines.monitoring.events import ASKED_SECONDS, Events, Sample

Event = dict[str, Any]


class Heard:
    """Collects a worker's events, through Celery's own receiver."""

    def __init__(self, worker: Running) -> None:
        self.events: list[Event] = []
        self._worker, self._ready = worker, threading.Event()
        self._connection = worker.client.connection_for_read()
        self._receiver = worker.client.events.Receiver(self._connection, handlers={"*": self._hear})
        self._receiver.on_consume_ready = lambda *_, **__: self._ready.set()
        self._thread = threading.Thread(target=self._receiver.capture)
        self._thread.start()
        assert self._ready.wait(30)

    def _hear(self, event: Event) -> None:
        if event["hostname"] == self._worker.name:
            self.events.append(event)

    def of(self, job_id: str, last: str) -> dict[str, Event]:
        """The events of one job by type, once the last one came."""

        def found() -> dict[str, Event] | None:
            events = {event["type"]: event for event in list(self.events) if event.get("uuid") == job_id}
            return events if last in events else None

        return until(found, last)

    def stop(self) -> None:
        self._receiver.should_stop = True
        self._thread.join()
        self._connection.close()


@pytest.fixture
def listener(worker: Running) -> Iterator[Heard]:
    listener = Heard(worker)
    worker.ask("enable_events")
    yield listener
    worker.ask("disable_events")
    listener.stop()


def test_a_success_is_heard_from_receiving_to_result_without_what_is_sensitive(
    worker: Running, listener: Heard
) -> None:
    events = listener.of(worker.producer.enqueue(Add(a=20, b=22)).id, "task-succeeded")
    received, succeeded = events["task-received"], events["task-succeeded"]
    assert received["name"] == "engines.add"
    assert received["kwargs"] == "{'a': 20, 'b': 22, 'card': '***'}"
    assert received["retries"] == 0
    assert received["root_id"] == received["uuid"]
    assert succeeded["result"] == "42"
    assert 0 <= succeeded["runtime"] < 60
    assert received["clock"] < events["task-started"]["clock"] < succeeded["clock"]
    assert received["pid"] == worker.process.pid
    assert "4111" not in str(listener.events)


@pytest.mark.parametrize(
    ("job", "event_type", "says"),
    [
        (Break(note="out of luck"), "task-failed", "ValueError: out of luck"),
        (End(how="retry"), "task-retried", "asked for a retry"),
        (End(how="snooze"), "task-retried", "later"),
        (End(how="discard"), "task-revoked", "no need"),
    ],
    ids=["dead", "retry", "snoozed", "discarded"],
)
def test_outcomes_have_an_event_each(worker: Running, listener: Heard, job: Any, event_type: str, says: str) -> None:
    event = listener.of(worker.producer.enqueue(job).id, event_type)[event_type]
    assert says in event["exception"]
    if event_type == "task-failed":
        assert "Traceback" in event["traceback"]


def test_a_cancelled_job_is_heard_as_revoked(worker: Running, listener: Heard) -> None:
    handle = worker.producer.enqueue(Sleep(seconds=300))
    until(lambda: handle.id in worker.active(), "the running job")
    worker.tell("revoke", task_id=handle.id, terminate=True)
    assert listener.of(handle.id, "task-revoked")["task-revoked"]["terminated"] is True


def test_the_heartbeat_contains_the_number_of_running_jobs(worker: Running, listener: Heard) -> None:
    handle = worker.producer.enqueue(Sleep(seconds=300))
    until(lambda: handle.id in worker.active(), "the running job")
    worker.tell("heartbeat")
    beat = until(
        lambda: next(
            (event for event in listener.events if event["type"] == "worker-heartbeat" and event["active"] == 1), None
        ),
        "a heartbeat",
    )
    assert beat["processed"] >= 1
    assert beat["freq"] > 0
    assert len(beat["loadavg"]) == 3
    worker.ask("revoke", task_id=handle.id, terminate=True)
    until(lambda: not worker.active(), "an idle worker")


def test_task_events_can_be_turned_off_and_on(worker: Running, listener: Heard) -> None:
    assert worker.ask("disable_events") == {"ok": "task events disabled"}
    assert worker.ask("disable_events") == {"ok": "task events already disabled"}
    silent = worker.producer.enqueue(Add(a=1))
    silent.wait(timeout=60)
    assert worker.ask("enable_events") == {"ok": "task events enabled"}
    listener.of(worker.producer.enqueue(Add(a=1)).id, "task-succeeded")
    assert not [event for event in listener.events if event.get("uuid") == silent.id]


def test_task_events_are_sent_for_a_minute_after_a_monitor_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=lambda: now, time=time.time))
    publisher = Events(hostname="a", active=int, clock=None)
    assert not publisher.enabled, "no monitor has asked yet"
    publisher.enable()
    now += ASKED_SECONDS - 1
    assert publisher.enabled
    now += 2
    assert not publisher.enabled


def test_of_many_jobs_a_sample_is_heard_of_each_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=lambda: now))
    sample = Sample(50)
    ids = [f"job-{number}" for number in range(1000)]
    assert all(sample.includes(job_id, is_new=True) for job_id in ids[:50]), "few are all heard"
    for second in range(5):
        now = 1001.0 + second
        first = [job_id for job_id in ids if sample.includes(job_id, is_new=True)]
        rest = [job_id for job_id in ids if sample.includes(job_id, is_new=False)]
        assert set(rest) <= set(first)
    assert 25 <= len(first) <= 100, "about 50 of 1,000"
    now += 10
    assert all(sample.includes(job_id, is_new=True) for job_id in ids[:50]), "after the flood all are heard again"


def test_fields_are_cut_to_what_is_shown() -> None:
    text = format_fields(decode(encode(Break(note="long " * 1000))))
    assert text.startswith("{'note': 'long long")
    assert len(text) <= 1024
