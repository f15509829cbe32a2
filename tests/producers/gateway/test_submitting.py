"""Sending one job over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from kombu.connection import Connection
from support.gateways import INVOICE, Gateway, Open, problem

from penstock.producers.senders.rabbitmq.names import lane_name
from penstock.schemas.wire.ids import made_at

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_job_is_sent_and_found_before_any_worker_has_seen_it(gateway: Gateway) -> None:
    key = gateway.key()
    answer = gateway.client.post("/v1/jobs/gateway.invoice", json=INVOICE, headers=key)
    assert answer.status_code == 202
    job = answer.json()
    assert job == {"id": job["id"], "kind": "gateway.invoice", "queue": "invoices", "created": True}
    [sent] = gateway.sent("invoices")
    assert (sent["id"], sent["task"]) == (job["id"], "gateway.invoice")
    assert sent["payload"] == {**INVOICE, "lines": [], "iban": ""}
    at = made_at(job["id"])
    assert at is not None
    assert abs(at - datetime.now(UTC)) < timedelta(hours=1)
    status = gateway.client.get(answer.headers["location"], headers=key)
    assert (status.status_code, status.json()["state"]) == (200, "queued")


def test_the_options_of_enqueue_are_parameters(gateway: Gateway) -> None:
    options = {"priority": "high", "key": "invoice-7", "tenant": "acme", "expires_in": "60"}
    answer = gateway.client.post("/v1/jobs/gateway.invoice", params=options, json=INVOICE, headers=gateway.key())
    assert answer.status_code == 202
    [sent] = gateway.sent("invoices", "high")
    assert {name: sent["penstock"][name] for name in ("priority", "key", "tenant")} == {
        "priority": "high",
        "key": "invoice-7",
        "tenant": "acme",
    }
    assert "expires_at" in sent["penstock"]


@pytest.mark.parametrize("when", [{"delay": "3600"}, {"run_at": "2090-01-01T00:00:00+01:00"}])
def test_a_delayed_job_goes_to_the_dispatcher(gateway: Gateway, when: dict[str, str]) -> None:
    if "run_at" in when:
        when = {"run_at": (datetime.now(UTC) + timedelta(days=300)).isoformat()}
    answer = gateway.client.post("/v1/jobs/gateway.invoice", params=when, json=INVOICE, headers=gateway.key())
    assert (answer.status_code, answer.json()["queue"]) == (202, "invoices")
    [sent] = gateway.sent("dispatcher")
    assert sent["penstock"]["queue"] == "invoices"


def test_a_former_name_of_a_kind_is_understood(gateway: Gateway) -> None:
    answer = gateway.client.post("/v1/jobs/gateway.bill", json=INVOICE, headers=gateway.key())
    assert answer.json()["kind"] == "gateway.invoice"


def test_the_trace_of_the_request_goes_on(gateway: Gateway) -> None:
    headers = {**gateway.key(), "traceparent": TRACE}
    gateway.client.post("/v1/jobs/gateway.invoice", json=INVOICE, headers=headers)
    [sent] = gateway.sent("invoices")
    assert sent["penstock"]["traceparent"] == TRACE


def test_a_unique_job_is_answered_with_the_existing_one(gateway: Gateway) -> None:
    key = gateway.key()
    first = gateway.client.post("/v1/jobs/gateway.sync", json={"account": "a"}, headers=key)
    again = gateway.client.post("/v1/jobs/gateway.sync", json={"account": "a"}, headers=key)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == {**first.json(), "created": False}
    assert len(gateway.sent("syncs")) == 1


def test_a_unique_job_that_is_refused_says_which_one_holds_its_key(gateway: Gateway) -> None:
    key = gateway.key()
    first = gateway.client.post("/v1/jobs/gateway.only", json={"account": "a"}, headers=key)
    again = gateway.client.post("/v1/jobs/gateway.only", json={"account": "a"}, headers=key)
    assert problem(again, 409, "duplicate-job")["existing_id"] == first.json()["id"]


def test_a_wrong_field_is_named_by_its_path_and_its_value_is_not_repeated(gateway: Gateway) -> None:
    wrong = {"number": 7, "to": "ada@example.com", "lines": [{"article": "x", "count": 1}, {"article": "y"}]}
    body = problem(
        gateway.client.post("/v1/jobs/gateway.invoice", json=wrong, headers=gateway.key()), 422, "invalid-fields"
    )
    assert body["errors"] == [{"pointer": "#/lines/1/count", "detail": "Field required"}]
    secret = {**INVOICE, "iban": {"secret": "DE02"}}
    answer = gateway.client.post("/v1/jobs/gateway.invoice", json=secret, headers=gateway.key())
    assert "DE02" not in answer.text
    assert gateway.sent("invoices") == []


@pytest.mark.parametrize(
    "options",
    [
        {"delay": "soon"},
        {"delay": "-1"},
        {"delay": "nan"},
        {"delay": "1e300"},
        {"run_at": "2090-01-01T00:00:00"},
        {"run_at": "9999-12-31T23:59:59-12:00"},
        {"priority": "highest"},
        {"key": ""},
        {"key": "x" * 256},
        {"key": "a\0b"},
        {"queue": "no such name"},
        {"nonsense": "1"},
    ],
)
def test_a_wrong_option_is_named(gateway: Gateway, options: dict[str, str]) -> None:
    answer = gateway.client.post("/v1/jobs/gateway.invoice", params=options, json=INVOICE, headers=gateway.key())
    [error] = problem(answer, 422, "invalid-parameters")["errors"]
    assert [error["parameter"]] == list(options)


@pytest.mark.parametrize("options", [{"delay": "1", "run_at": "2030-01-01T00:00:00Z"}, {"queue": "unheard-of"}])
def test_options_that_do_not_go_together_are_refused(gateway: Gateway, options: dict[str, str]) -> None:
    answer = gateway.client.post("/v1/jobs/gateway.invoice", params=options, json=INVOICE, headers=gateway.key())
    problem(answer, 422, "invalid-job")


def test_an_unknown_kind_is_not_found(gateway: Gateway) -> None:
    problem(gateway.client.post("/v1/jobs/no.such", json={}, headers=gateway.key()), 404, "unknown-kind")


def test_a_job_over_its_limit_is_too_large(gateway: Gateway) -> None:
    answer = gateway.client.post("/v1/jobs/gateway.tree", json={"data": "x" * 300_000}, headers=gateway.key())
    assert problem(answer, 413, "job-too-large")["limit"] == 256 * 1024


def test_an_unavailable_broker_is_a_503_that_names_no_host(gateway: Gateway, open_gateway: Open) -> None:
    unavailable = gateway.settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})
    answer = open_gateway(unavailable).client.post("/v1/jobs/gateway.invoice", json=INVOICE, headers=gateway.key())
    body = problem(answer, 503, "broker-unavailable")
    assert "127.0.0.1" not in body["detail"]
    assert answer.headers["retry-after"] == "5"


def test_jobs_go_to_rabbitmq_too(gateway: Gateway, open_gateway: Open, amqp_url: str, prefix: str) -> None:
    over_amqp = open_gateway(gateway.settings.model_copy(update={"broker_url": amqp_url, "prefix": prefix}))
    key = gateway.key()
    answer = over_amqp.client.post("/v1/jobs/gateway.invoice", json=INVOICE, headers=key)
    assert answer.status_code == 202
    with Connection(amqp_url) as connection:  # type: ignore[no-untyped-call]
        raw = connection.default_channel.basic_get(lane_name(prefix, "invoices", "normal"), no_ack=True)
    assert raw.headers["id"] == answer.json()["id"]
