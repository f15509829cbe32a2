"""The options of `enqueue` are one list, which producers, outboxes and the gateway share."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from penstock.config.errors import InvalidJob
from penstock.producers import AsyncProducer, Producer
from penstock.producers.contrib.django.outbox import Outbox as DjangoOutbox
from penstock.producers.enqueue.options import OPTION_NAMES, EnqueueOptions
from penstock.producers.outbox import Outbox
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job
from penstock.schemas.wire.codec import decode


class Parcel(Job, kind="options.parcel"): ...


class NoSender:
    async def send(self, envelopes: Any) -> None:
        raise AssertionError("nothing is sent")

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


@pytest.mark.parametrize("enqueue", [Producer.enqueue, AsyncProducer.enqueue, Outbox.enqueue, DjangoOutbox.enqueue])
def test_every_enqueue_takes_the_same_options(enqueue: Any) -> None:
    assert inspect.signature(enqueue).parameters["options"].annotation == "Unpack[EnqueueOptions]"


def test_every_option_is_documented() -> None:
    for text in (EnqueueOptions.__doc__, Producer.enqueue.__doc__):
        assert text is not None
        assert [name for name in OPTION_NAMES if name not in text] == []


def test_the_gateway_takes_options_of_enqueue_and_no_others() -> None:
    from penstock.producers.gateway.requests.options import Options

    # A client of the gateway has the id and the trace in headers.
    assert set(Options.model_fields) == OPTION_NAMES - {"id", "traceparent", "unique_states"}


def test_an_unknown_option_is_a_type_error_that_names_it() -> None:
    options: Any = {"dely": 5}
    sender = MemoryBroker()
    with pytest.raises(
        TypeError, match=r"enqueue\(\) got an unexpected keyword argument 'dely'; did you mean 'delay'\?"
    ):
        Producer("redis://unused", sender=sender).enqueue(Parcel(), **options)
    assert sender.sent == []
    with pytest.raises(TypeError, match="dely"):
        asyncio.run(AsyncProducer("redis://unused", sender=NoSender()).enqueue(Parcel(), **options))
    with pytest.raises(TypeError, match="dely"):
        Outbox().enqueue(None, Parcel(), **options)  # type: ignore[call-overload]


NAN, INFINITY = float("nan"), float("inf")
NOW = datetime.now(UTC)

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"delay": "5s"}, "delay must be a timedelta or a number of seconds, not '5s'"),
    ({"delay": True}, "delay must be a timedelta or a number of seconds, not True"),
    ({"delay": -1}, "delay must not be negative, as -1 is"),
    ({"delay": NAN}, "delay must be at most a hundred years, not nan"),
    ({"delay": INFINITY}, "delay must be at most a hundred years, not inf"),
    ({"delay": timedelta.max}, "delay must be at most a hundred years"),
    ({"delay": 1, "run_at": NOW}, "give delay or run_at, not both"),
    ({"run_at": "2026-01-01"}, "run_at must be an aware datetime, not '2026-01-01'"),
    ({"run_at": NOW.date()}, "run_at must be an aware datetime, not datetime.date"),
    ({"run_at": NOW.timestamp()}, "run_at must be an aware datetime, not "),
    ({"run_at": NOW.replace(tzinfo=None)}, "has no time zone; give an aware datetime"),
    ({"run_at": datetime.max.replace(tzinfo=UTC)}, "run_at must lie at most a hundred years ahead"),
    ({"run_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-9)))}, "at most a hundred years ahead"),
    ({"priority": "urgent"}, "priority must be one of high, normal, low, not 'urgent'"),
    ({"priority": "lwo"}, "did you mean 'low'?"),
    ({"priority": 1}, "priority must be one of high, normal, low, not 1"),
    ({"priority": ["high"]}, "priority must be one of high, normal, low, not ['high']"),
    ({"key": 7}, "key must be text, not 7"),
    ({"key": b"invoice-7"}, "key must be text, not b'invoice-7'"),
    ({"key": ""}, "key must not be empty; leave it out, or give None"),
    ({"key": "k" * 256}, "key has 256 characters; it may have 255"),
    ({"key": "a\0b"}, "key has a NUL or half a surrogate pair"),
    ({"key": "\ud800"}, "key has a NUL or half a surrogate pair"),
    ({"tenant": 7}, "tenant must be text, not 7"),
    ({"tenant": "t" * 256}, "tenant has 256 characters; it may have 255"),
    ({"tenant": "\udfff"}, "tenant has a NUL or half a surrogate pair"),
    ({"expires_in": "1h"}, "expires_in must be a timedelta or a number of seconds, not '1h'"),
    ({"expires_in": 0}, "expires_in must be more than zero, not 0"),
    ({"expires_in": NAN}, "expires_in must be at most a hundred years, not nan"),
    ({"expires_in": 10**400}, "expires_in must be at most a hundred years"),
    ({"expires_in": 5, "delay": 10}, "before it may run"),
    ({"queue": 5}, "queue 5 must be letters"),
    ({"queue": "a b"}, "queue 'a b' must be letters"),
    ({"queue": "nowhere"}, "unknown queue 'nowhere'"),
    ({"id": UUID(int=5)}, "id must be text of 1 to 128 characters, without NUL, not UUID"),
    ({"id": 5}, "id must be text of 1 to 128 characters, without NUL, not 5; such as str(uuid4())"),
    ({"id": ""}, "id must be text of 1 to 128 characters"),
    ({"id": "i" * 129}, "id must be text of 1 to 128 characters"),
    ({"id": "\U0001f4a9" * 100}, "id must be text of 1 to 128 characters"),
    ({"id": "a\0b"}, "id must be text of 1 to 128 characters, without NUL"),
    ({"traceparent": 5}, "traceparent must be text, not 5"),
    ({"traceparent": "0" * 65}, "traceparent has 65 characters; it may have 64"),
    ({"unique": "rejct", "key": "k"}, "not 'rejct'; did you mean 'reject'?"),
    ({"unique": True, "key": "k"}, "unique must be one of reject, existing, replace, debounce, not True"),
    ({"unique": "reject"}, "needs a key"),
    ({"unique_for": 5, "key": "k"}, "unique_for needs a policy beside it"),
    ({"unique": "reject", "key": "k", "unique_for": NAN}, "unique_for must be at most a hundred years, not nan"),
    ({"unique": "reject", "key": "k", "unique_states": "queued"}, "unique_states must be a sequence of states"),
    ({"unique": "debounce", "key": "k", "debounce": "5s"}, "debounce must be a timedelta or a number of seconds"),
    ({"tags": "import"}, "tags must be a sequence of texts, such as ('import',), not 'import'"),
    ({"tags": (3,)}, "tags must be a sequence of texts"),
    ({"tags": [f"t{number}" for number in range(11)]}, "tags are 11; a job may have 10"),
    ({"tags": ("",)}, "tags are printable texts of 1 to 64 characters"),
    ({"tags": ("a\x1bb",)}, "tags are printable texts of 1 to 64 characters"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_a_wrong_option_is_refused_by_every_enqueue_with_the_kind_and_the_remedy(
    options: dict[str, Any], message: str
) -> None:
    sender = MemoryBroker()
    sync, asynchronous = Producer("redis://unused", sender=sender), AsyncProducer("redis://unused", sender=NoSender())
    session: Any = None
    calls: list[Callable[[], object]] = [
        lambda: sync.enqueue(Parcel(), **options),
        lambda: asyncio.run(asynchronous.enqueue(Parcel(), **options)),
        lambda: Outbox().enqueue(session, Parcel(), **options),
        lambda: DjangoOutbox().enqueue(Parcel(), **options),
    ]
    for call in calls:
        with pytest.raises(InvalidJob) as refused:
            call()
        assert str(refused.value).startswith("options.parcel: ")
        assert message in str(refused.value)
    [answer] = asyncio.run(asynchronous.enqueue_each([(Parcel(), options)]))
    assert isinstance(answer, InvalidJob)
    assert sender.sent == []


def test_a_wrong_value_of_every_option_is_tried() -> None:
    assert {name for options, _ in WRONG for name in options} == OPTION_NAMES


def test_an_option_that_is_none_counts_as_not_given() -> None:
    sender = MemoryBroker()
    options: Any = dict.fromkeys(OPTION_NAMES)
    Producer("redis://unused", sender=sender).enqueue(Parcel(), **options)
    [envelope] = sender.sent
    assert set(envelope.headers["penstock"]) == {"version", "attempt", "priority", "sent_at"}


def test_the_longest_and_shortest_options_are_taken() -> None:
    sender = MemoryBroker()
    producer = Producer("redis://unused", sender=sender)
    producer.enqueue(Parcel(), id="i" * 128, key="k" * 255, tenant="é" * 255, traceparent="0" * 64, delay=0)
    producer.enqueue(Parcel(), run_at=datetime.min.replace(tzinfo=timezone(timedelta(hours=14))))
    producer.enqueue(Parcel(), run_at=NOW + timedelta(days=36_524), expires_in=timedelta(days=36_525))
    assert [envelope.queue for envelope in sender.sent] == ["default", "default", "dispatcher"]
    assert all(decode(envelope).kind.name == "options.parcel" for envelope in sender.sent)


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        (Parcel(), "enqueue_many takes several jobs, not one Parcel; send that with enqueue"),
        ([Parcel(), "x"], "enqueue takes a Job, not str; make one from its class first"),
        ([Parcel], "enqueue takes a Job, not the class Parcel; make one from its class first"),
        (["ab"], "enqueue takes a Job, not str"),
    ],
)
def test_what_is_no_job_is_refused_and_nothing_is_sent(jobs: Any, message: str) -> None:
    sender = MemoryBroker()
    session: Any = None
    calls: list[Callable[[], object]] = [
        lambda: Producer("redis://unused", sender=sender).enqueue_many(jobs),
        lambda: asyncio.run(AsyncProducer("redis://unused", sender=NoSender()).enqueue_many(jobs)),
        lambda: Outbox().enqueue_many(session, jobs),
        lambda: DjangoOutbox().enqueue_many(jobs),
    ]
    for call in calls:
        with pytest.raises(InvalidJob) as refused:
            call()
        assert message in str(refused.value)
    assert sender.sent == []
