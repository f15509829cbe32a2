"""The wire: round trips, strangers' messages, and bytes that are not a message at all."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from penstock.config.errors import PayloadTooLarge, UndecodableMessage
from penstock.schemas import Job, Sensitive, upcasts
from penstock.schemas.wire.codec import HEADER, Envelope, decode, encode
from penstock.schemas.wire.ids import made_at, new_id


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Line(BaseModel):
    text: str
    price: Decimal


class Everything(Job, kind="wire.everything", queue="wire", version=2, aliases=("wire.all",)):
    number: int
    ratio: float = 0.5
    text: str = ""
    day: date = date(2026, 1, 1)
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    wait: timedelta = timedelta(0)
    uid: UUID = UUID(int=0)
    raw: bytes = b""
    colour: Colour = Colour.RED
    tags: frozenset[str] = frozenset()
    lines: tuple[Line, ...] = ()
    extra: dict[str, Any] = {}  # noqa: RUF012  # pydantic copies it
    password: Sensitive[str] = ""


@upcasts(Everything, from_version=1)
def _rename(payload: dict[str, Any]) -> dict[str, Any]:
    return {"number": payload["count"]}


texts = st.text(st.characters(exclude_categories=["Cs"]))
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
everything = st.builds(
    Everything,
    number=st.integers(),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    text=texts,
    day=st.dates(),
    at=st.datetimes(timezones=st.just(UTC)),
    wait=st.timedeltas(timedelta(0), timedelta(days=999)),
    uid=st.uuids(),
    raw=texts.map(str.encode),
    colour=st.sampled_from(Colour),
    tags=st.frozensets(texts, max_size=3),
    lines=st.lists(
        st.builds(Line, text=texts, price=st.decimals(allow_nan=False, allow_infinity=False)), max_size=2
    ).map(tuple),
    extra=st.dictionaries(texts, values, max_size=3),
    password=texts,
)


@given(
    job=everything,
    priority=st.sampled_from(["high", "normal", "low"]),
    key=st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=50),
    tenant=st.none() | st.just("acme"),
    attempt=st.integers(1, 1000),
    fence=st.integers(0, 1000),
    expires=st.none() | st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
)
def test_an_encoded_job_is_decoded_unchanged(
    job: Everything,
    priority: Any,
    key: str | None,
    tenant: str | None,
    attempt: int,
    fence: int,
    expires: datetime | None,
) -> None:
    envelope = encode(job, priority=priority, key=key, tenant=tenant, attempt=attempt, fence=fence, expires_at=expires)
    carried = Envelope("wire", envelope.priority, json.loads(json.dumps(envelope.headers)), bytes(envelope.body))
    message = decode(carried)
    assert message.job == job
    assert (message.id, message.kind, message.queue) == (envelope.id, Everything.kind(), "wire")
    assert (message.priority, message.key, message.tenant) == (priority, key, tenant)
    assert (message.attempt, message.fence, message.expires_at) == (attempt, fence, expires)


headers = st.dictionaries(
    st.sampled_from(["task", "id", "eta", "expires", HEADER, "retries"]) | texts,
    values
    | st.sampled_from(["wire.everything", "x", "2026-01-01T00:00:00", {"version": 1}, {"version": True}, {"key": 3}]),
    max_size=6,
)


@given(headers=headers, body=st.binary() | values.map(lambda value: json.dumps(value).encode()))
@example(headers={"task": "wire.everything", "id": "x"}, body=b"[" * 100_000)
@example(headers={"task": "wire.everything", "id": "x"}, body=b'[[],{"number":1e999},{}]')
@example(headers={"task": "wire.everything", "id": "x", "eta": "never"}, body=b'[[],{"number":1},{}]')
@example(headers={"task": "wire.everything", "id": "x", HEADER: {"version": 1}}, body=b'[[],{"count":[]},{}]')
def test_random_bytes_are_decoded_or_undecodable(headers: dict[str, Any], body: bytes) -> None:
    try:
        decode(Envelope("wire", "normal", headers, body))
    except UndecodableMessage as error:
        reason, detail = error.reason, error.detail
    else:
        return
    assert reason in {"undecodable", "unknown_kind", "invalid_payload", "unknown_version"}
    assert detail


def sent(body: str, **ours: Any) -> Envelope:
    header = {HEADER: ours} if ours else {}
    return Envelope("wire", "normal", {"task": "wire.everything", "id": "some-id", **header}, body.encode())


def test_the_headers_are_celerys_protocol_two() -> None:
    envelope = encode(Everything(number=1), key="k", tenant="t")
    assert envelope.headers["task"] == "wire.everything"
    assert envelope.headers["id"] == envelope.headers["root_id"] == envelope.id
    args, kwargs, embed = json.loads(envelope.body)
    assert (args, kwargs["number"]) == ([], 1)
    assert set(embed) == {"callbacks", "errbacks", "chain", "chord"}
    assert envelope.headers[HEADER]["version"] == 2
    assert datetime.fromisoformat(envelope.headers[HEADER]["sent_at"]).tzinfo is not None


def test_a_stock_clients_message_needs_no_header_of_ours() -> None:
    message = decode(sent('[[5], {"text": "hi"}, {"callbacks": null}]'))
    assert message.job == Everything(number=5, text="hi")
    assert (message.attempt, message.fence, message.priority) == (1, 0, "normal")


def test_an_alias_is_resolved() -> None:
    envelope = sent('[[], {"number": 5}, {}]')
    envelope.headers["task"] = "wire.all"
    assert decode(envelope).kind.name == "wire.everything"


def test_an_old_version_is_lifted() -> None:
    assert decode(sent('[[], {"count": 5}, {}]', version=1)).job == Everything(number=5)


@pytest.mark.parametrize(
    ("envelope", "reason", "detail"),
    [
        (sent("[[], {}, {}]"), "invalid_payload", "number: Field required"),
        (sent('[[], {"number": "x"}, {}]'), "invalid_payload", "number"),
        (sent('[[], {"number": 1, "surprise": 2}, {}]'), "invalid_payload", "surprise"),
        (sent("[[1,2,3,4,5,6,7,8,9,10,11,12,13,14], {}, {}]"), "invalid_payload", "14 positional"),
        (sent("\xff not json"), "undecodable", "JSON"),
        (sent('{"number": 1}'), "undecodable", "JSON"),
        (sent("[]"), "undecodable", "JSON"),
        (sent('[[], {"number": 1}, {}]', version=3), "unknown_version", "deploy"),
        (sent('[[], {"number": 1}, {}]', version="2"), "undecodable", "version"),
        (sent('[[], {"number": 1}, {}]', attempt=0), "undecodable", "attempt"),
        (Envelope("wire", "normal", {}, b""), "undecodable", "'task' and 'id'"),
        (Envelope("wire", "normal", {"task": "no.such", "id": "x"}, b""), "unknown_kind", r"no\.such"),
    ],
)
def test_an_undecodable_message_says_why(envelope: Envelope, reason: str, detail: str) -> None:
    with pytest.raises(UndecodableMessage, match=detail) as caught:
        decode(envelope)
    assert caught.value.reason == reason


def test_an_error_does_not_show_the_value_of_a_field() -> None:
    with pytest.raises(UndecodableMessage) as caught:
        decode(sent('[[], {"number": "s3cret"}, {}]'))
    assert "s3cret" not in str(caught.value)


def test_a_payload_over_the_limit_says_what_to_do() -> None:
    with pytest.raises(PayloadTooLarge, match="put it in storage and send the reference") as caught:
        encode(Everything(number=1, text="x" * 2000), max_bytes=1024)
    assert caught.value.size > caught.value.limit == 1024


def test_a_job_with_a_time_goes_to_the_dispatcher_and_names_its_queue() -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    envelope = encode(Everything(number=1), due_at=due)
    assert envelope.queue == "dispatcher"
    message = decode(envelope)
    assert (message.queue, message.due_at) == ("wire", due)


def test_ids_sort_by_the_time_they_were_made() -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert [job_id[:13] for job_id in ids] == sorted(job_id[:13] for job_id in ids)
    assert all(UUID(job_id).version == 7 and UUID(job_id).variant == "specified in RFC 4122" for job_id in ids)
    at = made_at(ids[0])
    assert at is not None
    assert before <= at <= datetime.now(UTC)
    assert made_at("not-a-uuid") is None
    assert made_at(str(UUID(int=5, version=4))) is None
