"""Dramatiq's messages, as its own encoder makes them, and bytes that are none."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from dramatiq import Message
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.config.errors import UndecodableMessage
from penstock.schemas import Job
from penstock.schemas.wire.codec import decode
from penstock.workers.brokers.stock.messages import pass_on_options, read_dramatiq


class Sum(Job, kind="dramatiq.sum", queue="sums"):
    a: int
    b: int = 0
    text: str = ""


def message(*args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> Message[Any]:
    return Message("sums.DQ", "dramatiq.sum", args, kwargs, options or {}, message_timestamp=1_800_000_000_000)


def test_positional_and_named_arguments_become_fields() -> None:
    sent = message(1, 2, text="☂")
    envelope = read_dramatiq("sums", sent.encode(), "high")
    assert (envelope.queue, envelope.priority, envelope.id) == ("sums", "high", sent.message_id)
    read = decode(envelope)
    assert (read.job, read.kind.name, read.embed, read.due_at) == (Sum(a=1, b=2, text="☂"), "dramatiq.sum", None, None)


def test_an_eta_and_a_greatest_age_are_times() -> None:
    read = decode(read_dramatiq("sums", message(1, options={"eta": 1_800_000_000_500, "max_age": 1500}).encode()))
    assert read.due_at == datetime.fromtimestamp(1_800_000_000.5, UTC)
    assert read.expires_at == datetime.fromtimestamp(1_800_000_001.5, UTC)


def test_followers_travel_in_the_embed_where_a_worker_sees_them() -> None:
    piped = message(1) | message(2)
    read = decode(read_dramatiq("sums", piped.messages[0].encode()))
    assert read.embed is not None
    assert read.embed["pipe_target"]["message_id"] == piped.messages[1].message_id
    plain = message(1, options={"on_failure": "other", "max_retries": 3, "redis_message_id": "x"})
    embed = decode(read_dramatiq("sums", plain.encode())).embed
    assert {name: value for name, value in (embed or {}).items() if value} == {"on_failure": "other"}


values: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers()),
    st.just({"a": 1}),
)
almost = st.fixed_dictionaries(
    {},
    optional={
        "actor_name": st.just("dramatiq.sum") | values,
        "message_id": st.just("an id") | values,
        "args": st.just([]) | values,
        "kwargs": st.just({"a": 1}) | values,
        "options": st.fixed_dictionaries({}, optional={"eta": values, "max_age": values, "pipe_target": values})
        | values,
        "message_timestamp": values,
    },
)


@given(st.binary() | almost.map(lambda fields: json.dumps(fields).encode()))
@example(b"[" * 100_000)
@example(b'{"actor_name":"\\ud800","message_id":"a","args":[],"kwargs":{},"options":{}}')
@example(b'{"actor_name":"x","message_id":"a","args":[],"kwargs":{},"options":{"eta":1e308}}')
def test_random_bytes_are_a_message_or_undecodable(raw: bytes) -> None:
    try:
        envelope = read_dramatiq("sums", raw)
        decode(envelope)
    except UndecodableMessage:
        return
    assert envelope.id
    assert json.loads(envelope.body)[0] == json.loads(raw)["args"]


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"body": "e30=", "headers": {}}', message(1).encode()[:-1]])
def test_bytes_that_are_not_a_dramatiq_message_are_refused(raw: bytes) -> None:
    with pytest.raises(UndecodableMessage, match="not a Dramatiq message") as caught:
        read_dramatiq("sums", raw)
    assert caught.value.reason == "undecodable"


def test_options_of_a_dramatiq_message_travel_in_the_embed_for_workers_that_need_them() -> None:
    """A header of this size would end the connection to RabbitMQ."""
    large = "x" * 200_000
    sent = message(1, 2, options={"trace": large})
    for needed in (True, False):
        envelope = read_dramatiq("sums", sent.encode())
        pass_on_options(envelope, needed=needed)
        assert len(json.dumps(envelope.headers)) < 1000
        embed = json.loads(envelope.body)[2]
        request = {"options": {"trace": large}, "message_timestamp": sent.message_timestamp}
        assert embed.get("dramatiq") == (request if needed else None)
