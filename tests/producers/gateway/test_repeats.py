"""`Idempotency-Key`: repeating a request is harmless."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.gateways import INVOICE, Gateway, Open, problem

from penstock.config.errors import BrokerUnavailable
from penstock.ledger.sql.tables import requests
from penstock.producers import AsyncProducer

PATH = "/v1/jobs/gateway.invoice"


def post(
    gateway: Gateway, key: dict[str, str], again: str, body: Any = INVOICE, path: str = PATH, **options: str
) -> Any:
    return gateway.client.post(path, json=body, params=options, headers={**key, "Idempotency-Key": again})


def test_a_repeated_request_is_answered_alike_and_sent_once(gateway: Gateway) -> None:
    key = gateway.key()
    first, again = (post(gateway, key, "one") for _ in range(2))
    assert (first.status_code, first.json()) == (again.status_code, again.json())
    assert first.headers["location"] == again.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert len(gateway.sent("invoices")) == 1


def test_a_repeated_batch_too(gateway: Gateway) -> None:
    key = gateway.key()
    body = {"jobs": [{"kind": "gateway.invoice", "payload": INVOICE}, {"kind": "no.such"}]}
    first, again = (post(gateway, key, "one", body, "/v1/jobs") for _ in range(2))
    assert (first.status_code, first.json()) == (again.status_code, again.json())
    assert again.status_code == 207
    assert len(gateway.sent("invoices")) == 1


@pytest.mark.parametrize(
    "change", [{"body": {**INVOICE, "number": 8}}, {"priority": "low"}, {"path": "/v1/jobs/gateway.bill"}]
)
def test_the_key_of_another_request_is_refused(gateway: Gateway, change: dict[str, Any]) -> None:
    key = gateway.key()
    assert post(gateway, key, "one").status_code == 202
    problem(post(gateway, key, "one", **change), 422, "key-used")


def test_keys_of_different_callers_do_not_meet(gateway: Gateway) -> None:
    assert [post(gateway, gateway.key(), "one").status_code for _ in range(2)] == [202, 202]
    assert len(gateway.sent("invoices")) == 2


@pytest.mark.parametrize("wrong", ["", "x" * 256, "a\tb"])
def test_an_invalid_idempotency_key_is_refused(gateway: Gateway, wrong: str) -> None:
    problem(post(gateway, gateway.key(), wrong), 422, "invalid-key")


def test_a_refused_request_leaves_its_key_free(gateway: Gateway) -> None:
    key = gateway.key()
    problem(post(gateway, key, "one", {"number": -1}), 422, "invalid-fields")
    problem(post(gateway, key, "one", queue="unheard-of"), 422, "invalid-job")
    assert post(gateway, key, "one").status_code == 202


def test_a_request_that_was_cut_off_is_sent_again_under_the_same_id(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker had the job, and the answer did not come."""
    key = gateway.key()
    enqueue: Callable[..., Any] = AsyncProducer.enqueue

    async def cut_off(self: AsyncProducer, *arguments: Any, **options: Any) -> Any:
        await enqueue(self, *arguments, **options)
        raise BrokerUnavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(AsyncProducer, "enqueue", cut_off)
        problem(post(gateway, key, "one"), 503, "broker-unavailable")
    answer = post(gateway, key, "one")
    assert answer.status_code == 202
    assert [sent["id"] for sent in gateway.sent("invoices")] == [answer.json()["id"]] * 2


@pytest.mark.parametrize("kind", ["gateway.sync", "gateway.only"])
def test_a_unique_job_that_was_cut_off_is_not_its_own_duplicate(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    key, path, body = gateway.key(), f"/v1/jobs/{kind}", {"account": "a"}
    enqueue: Callable[..., Any] = AsyncProducer.enqueue

    async def cut_off(self: AsyncProducer, *arguments: Any, **options: Any) -> Any:
        await enqueue(self, *arguments, **options)
        raise BrokerUnavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(AsyncProducer, "enqueue", cut_off)
        problem(post(gateway, key, "one", body, path), 503, "broker-unavailable")
    answer = post(gateway, key, "one", body, path)
    assert answer.status_code in (200, 202)
    assert {sent["id"] for sent in gateway.sent("syncs")} == {answer.json()["id"]}


def test_a_request_that_is_under_way_is_not_started_again(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    key = gateway.key()
    started, go_on = threading.Event(), threading.Event()
    enqueue: Callable[..., Any] = AsyncProducer.enqueue

    async def slow(self: AsyncProducer, *arguments: Any, **options: Any) -> Any:
        import asyncio

        started.set()
        await asyncio.to_thread(go_on.wait, 60)
        return await enqueue(self, *arguments, **options)

    monkeypatch.setattr(AsyncProducer, "enqueue", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, gateway, key, "one")
        assert started.wait(60)
        problem(post(gateway, key, "one"), 409, "under-way")
        go_on.set()
        assert first.result(60).status_code == 202
    assert len(gateway.sent("invoices")) == 1


def test_a_gateway_that_died_leaves_a_request_that_can_be_repeated(gateway: Gateway) -> None:
    key = gateway.key()
    job_id = post(gateway, key, "one").json()["id"]
    died = sa.update(requests).values(status=None, answer=None, begun_at=datetime.now(UTC) - timedelta(minutes=1))
    gateway.database.write(lambda connection: connection.execute(died))
    assert post(gateway, key, "one").json()["id"] == job_id


def test_keys_are_forgotten_after_a_day(gateway: Gateway, open_gateway: Open) -> None:
    key = gateway.key()
    job_id = post(gateway, key, "one").json()["id"]
    old = sa.update(requests).values(begun_at=datetime.now(UTC) - timedelta(days=1, minutes=1))
    gateway.database.write(lambda connection: connection.execute(old))
    another = open_gateway()  # which deletes old keys with its first
    assert post(another, key, "one").json()["id"] != job_id
