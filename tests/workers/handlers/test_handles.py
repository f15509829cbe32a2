"""A handler that could not work is refused by `@handles`, with its file and line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from penstock.config.errors import KindError
from penstock.schemas import Job, registry
from penstock.workers import Context, handles
from penstock.workers.handlers.registry import handlers

if TYPE_CHECKING:
    from decimal import Decimal


class Pay(Job, kind="handles.pay"):
    order: int


class Ship(Job, kind="handles.ship"):
    order: int


class HasOrder(Protocol):
    order: int


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    handlers.discard(Pay.kind())


def of_another_kind(job: Ship) -> None: ...


def of_a_context(job: Context, other: Context) -> None: ...


def of_plain_data(job: dict) -> None: ...  # type: ignore[type-arg]


def generator(job: Pay) -> Iterator[int]:
    yield job.order


async def async_generator(job: Pay) -> AsyncIterator[int]:
    yield job.order


def of_a_name_that_is_not_imported(job: Pay, amount: Decimal) -> None: ...


def without_a_job() -> None: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (of_another_kind, "its first parameter takes the job; annotate it Pay, not "),
        (of_a_context, "its first parameter takes the job; annotate it Pay, not "),
        (of_plain_data, "its first parameter takes the job; annotate it Pay, not dict"),
        (generator, "it has a yield, so calling it would run nothing; return the result instead"),
        (async_generator, "it has a yield"),
        (
            of_a_name_that_is_not_imported,
            "name 'Decimal' is not defined; import what it names outside of TYPE_CHECKING",
        ),
        (without_a_job, "its first parameter takes the job"),
    ],
)
def test_a_handler_whose_signature_does_not_fit_is_refused_with_its_line(function: Any, message: str) -> None:
    with pytest.raises(KindError) as refused:
        handles(Pay)(function)
    assert message in str(refused.value)
    assert f"test_handles.py:{function.__code__.co_firstlineno}: handler {function.__name__} of Pay" in str(
        refused.value
    )
    assert handlers.find(registry["handles.pay"]) is None


def test_a_function_that_has_no_code_is_refused() -> None:
    with pytest.raises(KindError, match="the handler of Pay must be a function or a method, not functools"):
        handles(Pay)(partial(of_another_kind))  # type: ignore[arg-type]


def test_a_decorator_without_its_job_is_refused_and_not_silently_without_effect() -> None:
    with pytest.raises(KindError, match=r"takes the class of a job, as in @handles\(SendInvoice\), not <function"):

        @handles  # type: ignore[arg-type]
        def nothing(job: Pay) -> None: ...


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolate": "yes"}, "isolate must be True or False, not 'yes'"),
        ({"isolate": 1}, "isolate must be True or False, not 1"),
        ({"isolate": True, "memory_bytes": "1GB"}, "memory_bytes must be an integer from 1, not '1GB'"),
        ({"isolate": True, "memory_bytes": 0}, "memory_bytes must be an integer from 1, not 0"),
        ({"isolate": True, "memory_bytes": 1.5}, "memory_bytes must be an integer from 1, not 1.5"),
        ({"isolate": True, "memory_bytes": True}, "memory_bytes must be an integer from 1, not True"),
    ],
)
def test_a_wrong_option_of_handles_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(KindError) as refused:
        handles(Pay, **options)
    assert message in str(refused.value)


def of_the_base(job: Job) -> None: ...


def of_either(job: Ship | Pay) -> None: ...


def of_a_protocol(job: HasOrder) -> None: ...


def of_anything(job: Any) -> None: ...


def of_no_annotation(job) -> None: ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize("function", [of_the_base, of_either, of_a_protocol, of_anything, of_no_annotation])
def test_a_handler_that_can_take_the_job_is_registered(function: Any) -> None:
    assert handles(Pay)(function) is function
    handler = handlers.find(Pay.kind())
    assert handler is not None
    assert handler.function is function
