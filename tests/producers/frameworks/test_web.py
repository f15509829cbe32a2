"""Code that the modules for frameworks share: streams, traces, and imports that stay light."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from support.ledgers import Note, Tick, change, claimed, end, message
from support.polling import until, until_async

from penstock.config.errors import ConfigError
from penstock.ledger.sql.database import Database
from penstock.producers import AsyncProducer, Producer
from penstock.producers.contrib import web
from penstock.producers.traces import traced
from penstock.schemas import Outcome

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def producer(redis_url: str, prefix: str, ledger_url: str) -> Iterator[Producer]:
    with Producer(redis_url, prefix=prefix, database_url=ledger_url) as producer:
        yield producer


def read(frame: bytes) -> tuple[str, dict[str, Any]]:
    event, *ids, data, _, _ = frame.decode().split("\n")
    assert ids == (["id: end"] if event == "event: end" else [])
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_a_stream_sends_states_and_progress_once_and_ends_with_the_job(
    producer: Producer, ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "KEEP_ALIVE_SECONDS", 0.02)
    handle = producer.enqueue(Note())
    stream = web.frames(handle)

    def news() -> tuple[str, dict[str, Any]]:
        return read(next(frame for frame in stream if not frame.startswith(b":")))

    assert next(stream).startswith(b"retry: ")
    assert news() == ("status", {"id": handle.id, "state": "queued", "attempt": 0, "progress": None})
    assert [next(stream) for _ in range(3)] == [b": still here\n\n"] * 3  # and not the same state again
    claim = claimed(ledger, message(Note(), id=handle.id))
    event, data = news()
    assert (event, data["state"], data["attempt"]) == ("status", "running", 1)
    change(ledger, handle.id, progress_done=1, progress_total=3, progress_note="one\nline")
    assert news()[1]["progress"] == {"done": 1, "total": 3, "note": "one\nline"}
    end(ledger, claim, Outcome.SUCCEEDED, result='"secret"')
    [last] = [frame for frame in stream if not frame.startswith(b":")]
    event, data = read(last)
    assert (event, data["state"]) == ("end", "succeeded")
    assert b"secret" not in last


async def _gather(stream: AsyncIterator[bytes]) -> list[bytes]:
    return [frame async for frame in stream]


def test_an_async_stream_sends_the_same_frames(redis_url: str, prefix: str, ledger: Database, ledger_url: str) -> None:
    async def run() -> tuple[str, list[bytes]]:
        async with AsyncProducer(redis_url, prefix=prefix, database_url=ledger_url) as producer:
            handle = await producer.enqueue(Note())
            stream = web.async_frames(handle)
            began = [await anext(stream), await anext(stream)]
            claim = await asyncio.to_thread(claimed, ledger, message(Note(), id=handle.id))
            await asyncio.to_thread(end, ledger, claim, Outcome.DISCARDED)
            return handle.id, began[1:] + await _gather(stream)

    job_id, frames = asyncio.run(run())
    events = [read(frame) for frame in frames if not frame.startswith(b":")]
    assert [event for event, _ in events] == ["status"] * (len(events) - 1) + ["end"]
    assert {data["id"] for _, data in events} == {job_id}
    assert events[-1][1]["state"] == "discarded"


def test_a_stream_ends_when_its_producer_is_closed(producer: Producer, ledger: Database) -> None:
    stream = web.frames(producer.enqueue(Note()))
    frames: list[bytes] = []
    thread = threading.Thread(target=lambda: frames.extend(stream))
    thread.start()
    until(lambda: producer._ledger.subscriptions()._waiters)
    producer.close()
    thread.join(60)
    assert not thread.is_alive()
    assert len(frames) == 2


def test_a_stream_whose_reader_left_is_forgotten(
    producer: Producer, redis_url: str, prefix: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "KEEP_ALIVE_SECONDS", 0.02)
    stream = web.frames(producer.enqueue(Note()))
    while not next(stream).startswith(b":"):
        pass
    stream.close()  # type: ignore[attr-defined]  # as servers do
    assert not producer._ledger.subscriptions()._waiters

    async def run() -> None:
        async with AsyncProducer(redis_url, prefix=prefix, database_url=ledger_url) as producer:
            stream = web.async_frames(await producer.enqueue(Note()))
            assert len([await anext(stream), await anext(stream)]) == 2
            watching = producer._ledger.async_subscriptions()
            reading = asyncio.ensure_future(anext(stream))
            await until_async(lambda: any(loop._waiters for loop in watching._loops.values()))
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            assert not any(loop._waiters for loop in watching._loops.values())

    monkeypatch.setattr(web, "KEEP_ALIVE_SECONDS", 60.0)
    asyncio.run(run())


def test_a_stream_ends_without_its_ledger_and_the_browser_reconnects(redis_url: str, prefix: str) -> None:
    with Producer(redis_url, prefix=prefix, database_url="sqlite://") as producer:  # no tables
        assert [frame[:5] for frame in web.frames(producer.enqueue(Note()))] == [b"retry"]

    async def run() -> list[bytes]:
        async with AsyncProducer(redis_url, prefix=prefix, database_url="sqlite://") as producer:
            return await _gather(web.async_frames(await producer.enqueue(Note())))

    assert [frame[:5] for frame in asyncio.run(run())] == [b"retry"]


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (GIVEN, GIVEN),
        (f" {GIVEN} ", GIVEN),
        (f"01{GIVEN[2:]}-of-a-later-version", GIVEN),
        (f"{GIVEN}-more", None),
        (f"ff{GIVEN[2:]}", None),
        (GIVEN.upper(), None),
        (GIVEN.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32), None),
        (GIVEN.replace("b7ad6b7169203331", "0" * 16), None),
        ("nonsense", None),
        ("", None),
        (None, None),
    ],
)
def test_a_jobs_trace_is_its_requests_if_that_is_one(header: str | None, kept: str | None, penstock: Any) -> None:
    producer = Producer("redis://127.0.0.1:9/0")
    with traced(header):
        producer.enqueue(Note())
        producer.enqueue_many([Tick()])
        producer.enqueue(Note(text="own"), traceparent="given")
    producer.enqueue(Note(text="after"))
    traceparents = [job.traceparent for job in penstock.enqueued()]
    assert traceparents == [kept, kept, "given", None]


def test_an_active_span_of_opentelemetry_comes_first(penstock: Any) -> None:
    from opentelemetry import trace

    context = trace.SpanContext(0xAF, 0xB7, is_remote=False, trace_flags=trace.TraceFlags(1))
    with traced(GIVEN), trace.use_span(trace.NonRecordingSpan(context)):
        Producer("redis://127.0.0.1:9/0").enqueue(Note())
    assert [job.traceparent for job in penstock.enqueued()] == [f"00-{0xAF:032x}-{0xB7:016x}-01"]


@pytest.mark.parametrize("name", ["fastapi", "flask", "pyramid", "starlette", "tornado"])
def test_a_frameworks_module_loads_neither_an_engine_nor_sql_nor_a_client(name: str) -> None:
    heavy = ["celery", "dramatiq", "sqlalchemy", "redis", "kombu", "amqp", "pydantic_settings"]
    code = f"import sys, penstock.producers.contrib.{name}; print([one for one in {heavy!r} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning")
def test_errors_name_what_is_missing() -> None:
    from flask import Flask
    from pyramid.config import Configurator
    from starlette.requests import Request

    from penstock.producers.contrib.flask import Penstock
    from penstock.producers.contrib.starlette import producer_of

    with pytest.raises(RuntimeError, match="lifespan"):
        producer_of(Request({"type": "http"}))
    with pytest.raises(ConfigError, match=r"penstock\.secret"), Configurator() as config:
        config.include("penstock.producers.contrib.pyramid")
    producer = Producer("redis://127.0.0.1:9/0")
    app = Flask(__name__)
    penstock = Penstock(app, producer=producer)
    with app.test_request_context(), pytest.raises(ConfigError, match="SECRET_KEY"):
        penstock.events_path(producer.handle("a-job"))
