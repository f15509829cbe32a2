"""Jobs that `enqueue` accepts can be read by a worker, off either broker; the others are refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from amqp.serialization import dumps, loads
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, JsonValue, PlainSerializer, TypeAdapter, create_model, field_validator
from pydantic_core import from_json

from penstock.config.errors import InvalidJob
from penstock.producers.senders.redis.sender import EntryPacker
from penstock.schemas import Job, registry
from penstock.schemas.wire.codec import Envelope, Message, decode, encode
from penstock.schemas.wire.payloads import result_json

NAN, INFINITY = float("nan"), float("inf")


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Point(BaseModel):
    x: float = 0.0
    label: str | None = None


@dataclass
class Size:
    width: float = 1.0
    tags: list[str] = field(default_factory=list)


class Anything(Job, kind="payloads.anything"):
    value: Any = None


class Measured(Job, kind="payloads.measured"):
    point: Point = Point()
    maybe: float | None = None
    values: list[float] = Field(default_factory=list)


class Numbered(Job, kind="payloads.numbered"):
    number: int = 0
    numbers: list[int] = Field(default_factory=list)


def off_redis(envelope: Envelope) -> Envelope:
    """The envelope as Redis carries it: packed as a command, and its fields read again."""
    parts = EntryPacker("test")(envelope).split(b"\r\n")
    headers = from_json(parts[parts.index(b"h") + 2])
    packed = EntryPacker("test")(envelope)
    length = len(envelope.body)
    assert packed.endswith(b"$%d\r\n%b\r\n" % (length, envelope.body))
    return Envelope(envelope.queue, envelope.priority, headers, packed[-length - 2 : -2])


def off_rabbitmq(envelope: Envelope) -> Envelope:
    """The envelope as RabbitMQ carries it: its headers in an AMQP table, its id as a short string."""
    encoded = dumps("Fs", [envelope.headers, envelope.id])
    [headers, job_id], _ = loads("Fs", encoded, 0)
    assert job_id == envelope.id
    return Envelope(envelope.queue, envelope.priority, headers, BytesIO(envelope.body).read())


def read(envelope: Envelope) -> list[Message]:
    return [decode(off_redis(envelope)), decode(off_rabbitmq(envelope))]


texts = st.text()
floats = st.floats()
hashable: st.SearchStrategy[Any] = st.none() | st.booleans() | st.integers() | floats | texts | st.binary(max_size=8)
anything: st.SearchStrategy[Any] = st.recursive(
    hashable
    | st.sampled_from([Colour.RED, Level.LOW, object(), Point(x=NAN), Size(width=INFINITY)])
    | st.sampled_from([4299, 4300, 5000]).map(lambda digits: 10**digits)
    | st.dates()
    | st.datetimes(timezones=st.timezones())
    | st.times()
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
    | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.frozensets(hashable, max_size=3)
        | st.sets(hashable, max_size=3)
    ),
    max_leaves=8,
)
TYPES: list[Any] = [
    int, float, str, bytes, bool, date, datetime, time, timedelta, Decimal, UUID, Path, Colour, Level, Point, Size,
    JsonValue, Any, int | str, float | None, bytes | str, date | datetime, Literal["a", 1], list[float], set[int],
    frozenset[bytes], tuple[int, ...], dict[str, Any], dict[int, float], dict[UUID, Point], dict[datetime, str],
    list[Point], Annotated[int, Field(gt=0)], Annotated[Decimal, Field(allow_inf_nan=True)], complex, list[JsonValue],
]  # fmt: skip


@settings(max_examples=300)
@given(value=anything, depth=st.sampled_from([0, 0, 0, 90, 193, 197, 198, 210, 260]))
def test_any_value_that_is_accepted_can_be_read_by_a_worker(value: Any, depth: int) -> None:
    for _ in range(depth):
        value = [value]
    try:
        envelope = encode(Anything(value=value))
    except InvalidJob:
        return
    json.loads(envelope.body, parse_constant=pytest.fail)
    for message in read(envelope):
        assert (message.job.value is None) == (value is None)  # type: ignore[attr-defined]


def typed(kind: str, type_: Any) -> Any:
    return create_model("Typed", __base__=Job, __cls_kwargs__={"kind": kind}, value=(type_, ...))


@settings(max_examples=300)
@given(data=st.data(), type_=st.sampled_from(TYPES))
def test_a_job_of_any_type_that_is_accepted_can_be_read_by_a_worker(data: st.DataObject, type_: Any) -> None:
    kind = f"payloads.type{TYPES.index(type_)}"
    declared = registry.find(kind)
    job_class: Any = declared.job if declared is not None else typed(kind, type_)
    unnamed = type_ in (Any, JsonValue, list[JsonValue], dict[str, Any])
    strategy = anything if unnamed else texts.map(Path) if type_ is Path else st.from_type(type_)
    value = data.draw(strategy)
    try:
        job = job_class(value=value)
        envelope = encode(job)
    except (ValueError, InvalidJob):  # pydantic's ValidationError is one
        return
    json.loads(envelope.body, parse_constant=pytest.fail)
    for message in read(envelope):
        assert (message.job.value is None) == (job.value is None)  # type: ignore[attr-defined]


@settings(max_examples=200)
@given(
    key=st.none() | st.text(min_size=1, max_size=300), tenant=st.none() | texts, id=st.none() | st.text(max_size=140)
)
def test_options_that_are_accepted_can_be_read_by_a_worker(key: str | None, tenant: str | None, id: str | None) -> None:
    from penstock.producers.enqueue.envelopes import EnvelopeBuilder

    try:
        envelope, _ = EnvelopeBuilder().build(Numbered(), {"key": key, "tenant": tenant, "id": id})
    except InvalidJob:
        return
    for message in read(envelope):
        assert (message.key, message.tenant) == (key, tenant)


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def with_changed(job: Measured | Numbered, name: str, value: Any) -> Job:
    getattr(job, name).append(value)
    return job


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Anything(value=NAN), "it holds nan, which JSON has not"),
        (lambda: Anything(value={"a": [None, -INFINITY]}), "it holds -inf, which JSON has not"),
        (lambda: Anything(value={NAN, 1}), "it holds nan, which JSON has not"),
        (lambda: Anything(value=Point(x=NAN)), "it holds nan, which JSON has not"),
        (lambda: Measured(point=Point(x=INFINITY)), "it holds inf, which JSON has not"),
        (lambda: with_changed(Measured(), "values", NAN), "it holds nan, which JSON has not"),
        (lambda: with_changed(Numbered(), "numbers", "x"), "no worker could read it: numbers.0: Input should"),
        (lambda: Numbered.model_construct(number="x"), "no worker could read it: number"),
        (lambda: Anything(value="\ud800"), "it cannot be written as JSON: "),
        (lambda: Anything(value=b"\xff"), "it cannot be written as JSON: "),
        (lambda: Anything(value=object()), "it cannot be written as JSON: "),
        (lambda: Anything(value=10**4300), "no one could read it again: number out of range"),
        (lambda: Numbered(number=10**4300), "no one could read it again: number out of range"),
        (lambda: Anything(value=nested(200)), "no one could read it again: recursion limit exceeded"),
        (lambda: Anything(value=nested(300)), "it cannot be written as JSON: "),
        (lambda: Anything(value=cycle()), "it cannot be written as JSON: "),
    ],
)  # fmt: skip
def test_a_job_that_json_cannot_hold_is_refused_with_the_reason(make: Callable[[], Job], message: str) -> None:
    job = make()
    with pytest.raises(InvalidJob) as refused:
        encode(job)
    assert str(refused.value).startswith(f"{job.kind().name}: {message}")


def test_a_kind_whose_own_serializer_writes_what_its_validator_refuses_is_refused() -> None:
    class Cut(Job, kind="payloads.cut"):
        text: Annotated[str, PlainSerializer(lambda text: text[:-1])]

        @field_validator("text")
        @classmethod
        def _ends(cls, text: str) -> str:
            if not text.endswith("."):
                raise ValueError("it must end with a full stop")
            return text

    with pytest.raises(InvalidJob, match=r"payloads.cut: no worker could read it: text: .*full stop"):
        encode(Cut(text="x."))
    assert decode(encode(Cut(text="x.."))).job == Cut(text="x.")


def test_a_key_of_fields_that_no_database_takes_is_a_hash() -> None:
    class Named(Job, kind="payloads.named", unique_by=("name",)):
        name: str

    for message in read(encode(Named(name="a\0b"))):
        assert message.key is not None
        assert message.key.startswith("payloads.named:sha256=")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NAN, "it holds nan"),
        (lambda: {"a": [None, INFINITY]}, "it holds inf"),
        (lambda: Point(x=NAN), "it holds nan"),
        (lambda: 10**4300, "number out of range"),
        (lambda: nested(200), "recursion limit exceeded"),
        (lambda: nested(300), "Circular reference|depth exceeded"),
        (cycle, "Circular reference|depth exceeded"),
        (lambda: "\ud800", "surrogates not allowed"),
        (lambda: b"\xff", "invalid utf-8"),
        (object, "unknown type"),
    ],
)
def test_a_result_that_json_cannot_hold_is_refused_and_never_null(make: Callable[[], Any], message: str) -> None:
    value = make()
    for adapter in (TypeAdapter(Any), TypeAdapter(type(value))) if type(value) is not object else (TypeAdapter(Any),):
        with pytest.raises(ValueError, match=message):
            result_json(adapter, value)


@pytest.mark.parametrize(
    "make", [lambda: None, int, lambda: "null NaN", lambda: [None, 1.5], Point, lambda: nested(150), lambda: 10**4299]
)
def test_a_result_that_json_can_hold_is_kept(make: Callable[[], Any]) -> None:
    value = make()
    read_again = from_json(result_json(TypeAdapter(Any), value))
    assert read_again == (value.model_dump() if isinstance(value, Point) else value)
