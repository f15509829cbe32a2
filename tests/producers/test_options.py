"""The options of `enqueue` are one list, which producers, outboxes and the gateway share."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from penstock.producers import AsyncProducer, Producer
from penstock.producers.contrib.django.outbox import Outbox as DjangoOutbox
from penstock.producers.enqueue.options import OPTION_NAMES, EnqueueOptions
from penstock.producers.outbox import Outbox
from penstock.producers.senders.memory import MemoryBroker
from penstock.schemas import Job


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
    with pytest.raises(TypeError, match=r"enqueue\(\) got an unexpected keyword argument 'dely'"):
        Producer("redis://unused", sender=sender).enqueue(Parcel(), **options)
    assert sender.sent == []
    with pytest.raises(TypeError, match="dely"):
        asyncio.run(AsyncProducer("redis://unused", sender=NoSender()).enqueue(Parcel(), **options))
    with pytest.raises(TypeError, match="dely"):
        Outbox().enqueue(None, Parcel(), **options)  # type: ignore[call-overload]
