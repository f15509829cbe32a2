"""Whatever is sent to a worker's mailbox: it lives on, answers, and runs jobs."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Iterator
from typing import Any

import amqp
import pytest
from engine_jobs import Add
from forging import send, send_amqp, send_call, send_redis
from running import PAIRS, Running

BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"\xff\x00{",
    "a number": b"5",
    "a list": b"[1, [2]]",
    "an empty object": b"{}",
    "nested too deep": b"[" * 200_000,
    "a method that is no text": b'{"method": ["ping"], "destination": null}',
    "a name of itself": b'{"method": "ping", "self": 1, "body": 2}',
    "a large one": json.dumps({"method": "m" * 10_000_000}).encode(),
    "large arguments": json.dumps({"method": "ping", "arguments": {"a": "b" * 10_000_000}}).encode(),
}
FIELDS: dict[str, dict[str, Any]] = {
    "a command that is not there": {"method": "eval"},
    "a private name": {"method": "__init__"},
    "arguments that are a list": {"arguments": [1]},
    "arguments that are text": {"arguments": "n=1"},
    "a destination that is a number": {"destination": 5},
    "a pattern that takes for ever": {"destination": None, "pattern": "(.*)*(.*)*(.*)*(.*)*!", "matcher": "pcre"},
    "a matcher that is not there": {"destination": None, "pattern": "*", "matcher": "evil"},
    "an answer to a number": {"reply_to": 5, "ticket": "t"},
    "an answer to nowhere": {"reply_to": {"exchange": "nowhere", "routing_key": "x"}, "ticket": "t"},
    "an answer to an exchange of another type": {"reply_to": {"exchange": "amq.topic", "routing_key": "x"}},
    "an answer to the mailbox": {"reply_to": {"exchange": "celery.pidbox", "routing_key": "x"}, "ticket": {}},
}
PUBLISHED: dict[str, bytes] = {
    "a number": b"5",
    "a list": b"[1]",
    "an empty object": b"{}",
    "no JSON": b"\xff\xfe",
    "nested too deep": b"[" * 200_000,
    "no tag": b'{"body": "", "headers": {}, "properties": {}}',
    "headers that are a list": b'{"body": "", "headers": [1], "properties": {"delivery_tag": "1"}}',
    "an encoding that is not there": (
        b'{"body": "e30=", "headers": {}, "content-type": "application/json", "content-encoding": "evil",'
        b' "properties": {"delivery_tag": "1", "body_encoding": "evil"}}'
    ),
}
HEADERS: dict[str, dict[str, Any]] = {
    "a clock that is text": {"clock": "x"},
    "a clock that is a list": {"clock": [1]},
    "a clock below zero": {"clock": -1},
}
UNREADABLE = {
    "a property": {"correlation_id": b"caf\xe9"},
    "a header": {"application_headers": {"bad": b"caf\xe9"}},
    "a header's name": {"application_headers": {b"caf\xe9": 1}},
}


def workers_on(broker: str) -> pytest.MarkDecorator:
    """The workers of each engine on one broker."""
    pairs = [pair for pair in PAIRS if pair[1] == broker]
    return pytest.mark.parametrize("worker", pairs, ids=["celery", "dramatiq"], indirect=True, scope="module")


ON_REDIS, ON_RABBITMQ = workers_on("redis"), workers_on("rabbitmq")


@pytest.fixture(autouse=True)
def worker_lives_on(worker: Running) -> Iterator[None]:
    worker.ask("ping")  # it listens
    yield
    assert worker.ask("ping") == {"ok": "pong"}
    assert worker.process.poll() is None
    assert worker.producer.enqueue(Add(a=1)).result(timeout=60) == 2


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_is_no_command_is_dropped(worker: Running, body: bytes) -> None:
    send(worker, body)


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_a_command_with_wrong_fields_is_dropped(worker: Running, fields: dict[str, Any]) -> None:
    send_call(worker, **fields)


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
def test_a_wrong_clock_is_not_taken_over(worker: Running, headers: dict[str, Any]) -> None:
    send(worker, json.dumps({"method": "ping"}).encode(), **headers)


def test_a_clock_out_of_range_is_not_taken_over(worker: Running) -> None:
    if worker.settings.broker_url.startswith("redis"):
        send(worker, json.dumps({"method": "ping"}).encode(), clock=10**30)
    else:
        send(worker, json.dumps({"method": "ping"}).encode(), clock=2**62)
    assert worker.ask("clock")["clock"] < 2**53


@ON_REDIS
@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
def test_what_is_published_on_redis_and_is_no_message_is_dropped(worker: Running, published: bytes) -> None:
    send_redis(worker, published)


@ON_RABBITMQ
@pytest.mark.parametrize("properties", UNREADABLE.values(), ids=UNREADABLE)
def test_properties_that_cannot_be_read_cut_no_connection(worker: Running, properties: dict[str, Any]) -> None:
    send_amqp(worker, amqp.Message(b'{"method": "ping"}', content_type="application/json", **properties))
    assert "Connection to broker lost" not in worker.log.read_text()


def test_pickles_are_not_loaded(worker: Running) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return open, (str(worker.folder / "loaded"), "w")

    for content_type in ("application/x-python-serialize", "application/json"):
        send(worker, pickle.dumps(Evil()), content_type=content_type)
    worker.ask("ping")
    assert not (worker.folder / "loaded").exists()


def test_compressed_messages_are_not_expanded(worker: Running) -> None:
    send(worker, gzip.compress(json.dumps({"method": "shutdown"}).encode()), compression="application/x-gzip")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("pool_grow", {"n": 10**9}),
        ("pool_grow", {"n": "many"}),
        ("pool_grow", {"n": 9999}),
        ("pool_shrink", {"n": -5}),
        ("pool_shrink", {"n": [1]}),
        ("add_consumer", {"queue": 5}),
        ("add_consumer", {"queue": "a" * 100_000}),
        ("add_consumer", {"queue": "a/../\n"}),
        ("add_consumer", {"queue": "dispatcher"}),
        ("add_consumer", {}),
        ("cancel_consumer", {"queue": {"a": 1}}),
        ("revoke", {"task_id": [f"id-{number}" for number in range(5000)]}),
        ("revoke", {"task_id": "x" * 5000}),
        ("revoke", {"task_id": [{"id": 1}, 5]}),
        ("terminate", {"signal": "KILL", "task_id": 5}),
        ("query_task", {"ids": 5}),
        ("registered", {"taskinfoitems": 5}),
        ("registered", {"taskinfoitems": [[1]]}),
        ("hello", {}),
    ],
)
def test_wrong_arguments_are_answered_with_a_short_error(
    worker: Running, command: str, arguments: dict[str, Any]
) -> None:
    answer = worker.ask(command, **arguments)
    assert set(answer) == {"error"}
    assert len(answer["error"]) <= 200
    assert worker.ask("stats")["pool"]["max-concurrency"] == 5
    assert len(worker.ask("active_queues")) == 1


def test_celerys_commands_that_describe_the_process_or_gather_memory_are_not_there(worker: Running) -> None:
    for command in ("objgraph", "memdump", "memsample", "election", "revoke_by_stamped_headers"):
        send_call(worker, method=command, arguments={"headers": {"a": ["b"]}, "num": 1})


def test_what_cannot_be_read_is_counted_and_does_not_flood_the_log(worker: Running) -> None:
    for _ in range(50):
        send(worker, b"5")
    assert worker.ask("stats")["faults"]["remote control unreadable"] >= 50
    assert worker.log.read_text().count("remote control unreadable") < 50
