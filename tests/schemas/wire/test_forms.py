"""A task's message in the form of the other side: its sender is typed before its worker is, or later."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_core import to_json

from penstock.config.errors import UndecodableMessage
from penstock.schemas import Job
from penstock.schemas.jobs.adopted import AdoptedJob
from penstock.schemas.wire.codec import Envelope, body_of, decode, encode, seal
from penstock.schemas.wire.ids import new_id


class Invoice(Job, kind="forms.invoice", queue="forms"):
    order: str
    copies: int = 1


class Traced(Job, kind="forms.traced", queue="forms"):
    """Its fields have the names of an adopted job's."""

    args: list[Any] = []  # noqa: RUF012  # pydantic copies it
    kwargs: dict[str, Any] = {}  # noqa: RUF012
    request: str


class Adopted(AdoptedJob, kind="forms.adopted", queue="forms"):
    pass


def adopted(kind: str, *args: Any, request: dict[str, Any] | None = None, **kwargs: Any) -> Envelope:
    """The message of a web process that sends straight to the queues of adopted tasks."""
    payload = {"args": args, "kwargs": kwargs, "request": request or {"retries": 0}}
    return seal(kind, 1, body_of(to_json(payload)), new_id(), "forms", "normal")


@pytest.mark.parametrize("envelope", [adopted("forms.invoice", "o1", 2), adopted("forms.invoice", "o1", copies=2)])
def test_a_typed_kind_reads_what_an_adopted_task_was_sent(envelope: Envelope) -> None:
    message = decode(envelope)
    assert message.job == Invoice(order="o1", copies=2)
    assert message.embed is None


@pytest.mark.parametrize("request_", [{"chain": [{"task": "next"}]}, {"options": {"pipe_target": {"actor": "next"}}}])
def test_what_follows_the_task_is_not_lost(request_: dict[str, Any]) -> None:
    message = decode(adopted("forms.invoice", "o1", request=request_))
    assert message.embed is not None
    assert message.embed.items() >= request_.get("options", request_).items()


@pytest.mark.parametrize(
    ("envelope", "detail"),
    [
        (adopted("forms.invoice", "o1", 2, 3), "3 positional arguments for 2 fields"),
        (adopted("forms.invoice", number=1), "order"),
        (adopted("forms.invoice", request={"penstock": {"body": "gAR9"}}), "not plain JSON"),
    ],
)
def test_what_fits_no_field_is_refused(envelope: Envelope, detail: str) -> None:
    with pytest.raises(UndecodableMessage, match=detail) as caught:
        decode(envelope)
    assert caught.value.reason == "invalid_payload"


def test_a_typed_kind_may_have_such_fields_itself() -> None:
    assert decode(encode(Traced(request="r", args=[1]))).job == Traced(request="r", args=[1])


def test_an_adopted_task_reads_what_a_typed_producer_sent() -> None:
    envelope = encode(Invoice(order="o1", copies=2))
    envelope.headers["task"] = "forms.adopted"
    assert decode(envelope).job == Adopted(kwargs={"order": "o1", "copies": 2})
    assert decode(encode(Adopted(args=[1]))).job == Adopted(args=[1])
