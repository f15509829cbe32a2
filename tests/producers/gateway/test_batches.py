"""Sending many jobs in one request: an error for each that is wrong, and the others are sent."""

from __future__ import annotations

from typing import Any

import pytest
from support.gateways import INVOICE, Gateway, Open, problem

from penstock.config.settings import QueueSettings


def post(gateway: Gateway, jobs: Any, **scope: Any) -> Any:
    return gateway.client.post("/v1/jobs", json={"jobs": jobs}, headers=gateway.key(**scope))


def item(**changes: Any) -> dict[str, Any]:
    return {"kind": "gateway.invoice", "payload": INVOICE, **changes}


def test_jobs_of_several_kinds_are_sent_in_order(gateway: Gateway) -> None:
    jobs = [item(payload={**INVOICE, "number": number}) for number in range(600)]
    answer = post(gateway, [*jobs, {"kind": "gateway.tree"}, {"kind": "gateway.sync", "payload": {"account": "a"}}])
    assert answer.status_code == 202
    body = answer.json()
    assert (body["accepted"], body["refused"]) == (602, 0)
    sent = gateway.sent("invoices")
    assert [job["payload"]["number"] for job in sent] == list(range(600))
    assert [job["id"] for job in sent] == [answer["job"]["id"] for answer in body["jobs"][:600]]
    assert len(gateway.sent("trees")) == len(gateway.sent("syncs")) == 1


def test_a_batch_reports_invalid_items_and_sends_the_rest(gateway: Gateway) -> None:
    jobs = [
        item(),
        item(payload={"number": "x", "to": "ada@example.com"}),
        item(kind="no.such"),
        item(delay="soon"),
        "nonsense",
        {"kind": "gateway.tree", "payload": {"data": "x" * 300_000}},
        item(queue="unheard-of"),
        item(key="last"),
    ]
    answer = post(gateway, jobs)
    assert answer.status_code == 207
    body = answer.json()
    assert (body["accepted"], body["refused"]) == (2, 6)
    assert [answer["status"] for answer in body["jobs"]] == [202, 422, 404, 422, 422, 413, 422, 202]
    assert body["jobs"][1]["problem"]["errors"][0]["pointer"] == "#/jobs/1/payload/number"
    assert body["jobs"][3]["problem"]["errors"][0]["pointer"] == "#/jobs/3/delay"
    assert body["jobs"][4]["problem"]["errors"][0]["pointer"] == "#/jobs/4"
    assert [headers["penstock"].get("key") for headers in gateway.sent("invoices")] == [None, "last"]


def test_items_of_a_batch_have_their_own_options_and_need_the_scopes_of_the_key(gateway: Gateway) -> None:
    jobs = [item(priority="low", tenant="acme"), item(tenant="other"), {"kind": "gateway.tree"}]
    body = post(gateway, jobs, tenants=["acme"], kinds=["gateway.invoice"]).json()
    assert [answer["status"] for answer in body["jobs"]] == [202, 403, 403]
    [sent] = gateway.sent("invoices", "low")
    assert sent["penstock"]["tenant"] == "acme"


def test_unique_jobs_are_decided_about_one_by_one(gateway: Gateway) -> None:
    def of(kind: str) -> dict[str, Any]:
        return {"kind": kind, "payload": {"account": "a"}}

    body = post(gateway, [of("gateway.only"), of("gateway.only"), of("gateway.sync"), of("gateway.sync")]).json()
    assert [answer["status"] for answer in body["jobs"]] == [202, 409, 202, 200]
    assert body["jobs"][1]["problem"]["existing_id"] == body["jobs"][0]["job"]["id"]
    assert body["jobs"][3]["job"]["id"] == body["jobs"][2]["job"]["id"]


def test_a_full_queue_refuses_its_own_jobs_only(gateway: Gateway, open_gateway: Open) -> None:
    limited = gateway.settings.model_copy(update={"queues": {"invoices": QueueSettings(max_length=1)}})
    body = post(open_gateway(limited), [item(), item(), {"kind": "gateway.tree"}]).json()
    assert [answer["status"] for answer in body["jobs"]] == [503, 503, 202]
    assert body["jobs"][0]["problem"]["type"].endswith("queue-full")


def test_an_unavailable_broker_refuses_every_item(gateway: Gateway, open_gateway: Open) -> None:
    unavailable = gateway.settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})
    body = post(open_gateway(unavailable), [item(), {"kind": "gateway.tree"}]).json()
    assert [answer["status"] for answer in body["jobs"]] == [503, 503]


@pytest.mark.parametrize("body", [{}, {"jobs": {}}, {"jobs": [], "more": 1}, [], {"jobs": []}])
def test_a_body_that_is_not_a_batch_is_refused_as_a_whole(gateway: Gateway, body: Any) -> None:
    problem(gateway.client.post("/v1/jobs", json=body, headers=gateway.key()), 422, "invalid-fields")


def test_a_batch_has_a_limit_and_counts_as_many_requests(open_gateway: Open) -> None:
    gateway = open_gateway(max_batch=5)
    problem(post(gateway, [item()] * 6), 422, "invalid-fields")
    slow = gateway.key(requests_per_second=0.001)
    ask = {"jobs": [item()] * 5}
    assert gateway.client.post("/v1/jobs", json=ask, headers=slow).status_code == 429
    problem(gateway.client.post("/v1/jobs", json=ask, headers=slow), 429, "rate-limited")
