"""A job over HTTP: reading, cancelling and retrying it; and its tenant."""

from __future__ import annotations

from typing import Any

import pytest
from support.gateways import INVOICE, Gateway, Invoice, Open, Sync, problem
from support.ledgers import change, claimed, end, message, row_of, start_worker

from penstock.ledger.rows import audit
from penstock.schemas import Outcome


def submit(gateway: Gateway, key: dict[str, str], **options: str) -> str:
    answer = gateway.client.post("/v1/jobs/gateway.invoice", json=INVOICE, params=options, headers=key)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def run(gateway: Gateway, job_id: str, outcome: Outcome, tenant: str | None = None, **fields: Any) -> None:
    """Record the job as a worker does."""
    start_worker(gateway.database, "w1")
    claim = claimed(gateway.database, message(Invoice(**INVOICE), id=job_id, tenant=tenant))  # type: ignore[arg-type]
    assert end(gateway.database, claim, outcome, **fields)


def test_a_job_that_has_ended_is_shown_with_its_result(gateway: Gateway) -> None:
    key = gateway.key()
    job_id = submit(gateway, key, tenant="acme")
    run(gateway, job_id, Outcome.SUCCEEDED, "acme", result='{"pages": 2}')
    change(gateway.database, job_id, progress_done=2, progress_total=2, progress_note="done")
    job = gateway.client.get(f"/v1/jobs/{job_id}", headers=key).json()
    assert (job["state"], job["kind"], job["queue"], job["tenant"]) == (
        "succeeded",
        "gateway.invoice",
        "invoices",
        "acme",
    )
    assert job["result"] == {"pages": 2}
    assert job["progress"] == {"done": 2, "total": 2, "note": "done"}
    assert "payload" not in job


def test_a_large_result_that_is_gone_does_not_hide_the_job(gateway: Gateway) -> None:
    key = gateway.key()
    job_id = submit(gateway, key)
    run(gateway, job_id, Outcome.SUCCEEDED)
    change(gateway.database, job_id, result=None, result_ref=f"results/{job_id}/1.json")
    job = gateway.client.get(f"/v1/jobs/{job_id}", headers=key).json()
    assert job["state"] == "succeeded"
    assert "storage" in job["result_error"]


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("act", ["", "/cancel", "/retry", "/events"])
def test_the_job_of_another_tenant_is_not_found(gateway: Gateway, act: str, seen: bool) -> None:
    acme, other = gateway.key(tenants=["acme"]), gateway.key(tenants=["other"])
    job_id = submit(gateway, acme)
    if seen:
        run(gateway, job_id, Outcome.DEAD, "acme")
    method = "POST" if act in ("/cancel", "/retry") else "GET"
    answer = gateway.client.request(method, f"/v1/jobs/{job_id}{act}?kind=gateway.invoice", headers=other)
    problem(answer, 404, "job-not-found")
    assert gateway.client.get(f"/v1/jobs/{job_id}", headers=acme).status_code == 200


def test_a_job_is_found_by_another_key_of_its_tenant_once_it_is_recorded(gateway: Gateway) -> None:
    acme, colleague = gateway.key(tenants=["acme"]), gateway.key(tenants=["acme", "other"])
    job_id = submit(gateway, acme)
    problem(gateway.client.get(f"/v1/jobs/{job_id}", headers=colleague), 404, "job-not-found")
    run(gateway, job_id, Outcome.SUCCEEDED, "acme")
    assert gateway.client.get(f"/v1/jobs/{job_id}", headers=colleague).json()["tenant"] == "acme"


def test_a_key_for_other_kinds_or_queues_does_not_find_it(gateway: Gateway) -> None:
    job_id = submit(gateway, gateway.key())
    run(gateway, job_id, Outcome.SUCCEEDED)
    for scope in ({"kinds": ["gateway.s*"]}, {"queues": ["syncs"]}):
        problem(gateway.client.get(f"/v1/jobs/{job_id}", headers=gateway.key(**scope)), 404, "job-not-found")
    for scope in ({"kinds": ["gateway.i*"]}, {"queues": ["invoices"]}):
        assert gateway.client.get(f"/v1/jobs/{job_id}", headers=gateway.key(**scope)).status_code == 200


@pytest.mark.parametrize(
    "job_id", ["019ab3c2-0000-7000-8000-000000000000", "nonsense", "%00", "%20", "x" * 129, "%ED%A0%80"]
)
def test_an_unknown_id_is_not_found(gateway: Gateway, job_id: str) -> None:
    answer = gateway.client.get(f"/v1/jobs/{job_id}", headers=gateway.key())
    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_job_that_was_pruned_is_not_queued_again(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock.producers.gateway.routes import jobs

    key = gateway.key()
    job_id = submit(gateway, key)
    assert gateway.client.get(f"/v1/jobs/{job_id}", headers=key).status_code == 200
    at = jobs.made_at(job_id)
    assert at is not None
    monkeypatch.setattr(jobs, "made_at", lambda _id: at.replace(year=at.year - 1))
    problem(gateway.client.get(f"/v1/jobs/{job_id}", headers=key), 404, "job-not-found")


def test_a_job_that_no_worker_has_seen_is_cancelled_by_who_sent_it(gateway: Gateway) -> None:
    key = gateway.key(tenants=["acme"])
    job_id = submit(gateway, key)
    problem(gateway.client.post(f"/v1/jobs/{job_id}/cancel", headers=key), 409, "wrong-state")
    answer = gateway.client.post(f"/v1/jobs/{job_id}/cancel", params={"kind": "gateway.invoice"}, headers=key)
    assert answer.json() == {"id": job_id, "state": "cancelled"}
    assert gateway.client.get(f"/v1/jobs/{job_id}", headers=key).json()["state"] == "cancelled"
    [act] = audit.find(gateway.database, subject=job_id)
    assert (act.act, act.actor) == ("cancel", "key test")


def test_a_running_job_is_asked_to_stop(gateway: Gateway) -> None:
    key = gateway.key()
    job_id = submit(gateway, key)
    start_worker(gateway.database, "w1")
    claimed(gateway.database, message(Invoice(**INVOICE), id=job_id))  # type: ignore[arg-type]
    answer = gateway.client.post(f"/v1/jobs/{job_id}/cancel", headers=key)
    assert answer.json()["state"] == "running"
    assert row_of(gateway.database, job_id).cancel_requested


def test_a_job_that_has_ended_cannot_be_cancelled(gateway: Gateway) -> None:
    key = gateway.key()
    job_id = submit(gateway, key)
    run(gateway, job_id, Outcome.SUCCEEDED)
    problem(gateway.client.post(f"/v1/jobs/{job_id}/cancel", headers=key), 409, "wrong-state")


def test_a_dead_job_is_tried_again(gateway: Gateway) -> None:
    key = gateway.key()
    job_id = submit(gateway, key)
    problem(gateway.client.post(f"/v1/jobs/{job_id}/retry", headers=key), 409, "wrong-state")
    run(gateway, job_id, Outcome.DEAD, error="broken")
    assert gateway.client.get(f"/v1/jobs/{job_id}", headers=key).json()["error"] == "broken"
    answer = gateway.client.post(f"/v1/jobs/{job_id}/retry", headers=key)
    assert answer.json() == {"id": job_id, "state": "scheduled"}
    row = row_of(gateway.database, job_id)
    assert (row.state, row.failures, row.error) == ("scheduled", 0, None)
    [act] = audit.find(gateway.database, subject=job_id)
    assert (act.act, act.detail) == ("retry", {"was": "dead"})


def test_a_job_that_succeeded_is_not_tried_again(gateway: Gateway) -> None:
    key = gateway.key()
    job_id = submit(gateway, key)
    run(gateway, job_id, Outcome.SUCCEEDED)
    problem(gateway.client.post(f"/v1/jobs/{job_id}/retry", headers=key), 409, "wrong-state")


def test_an_unavailable_ledger_is_a_503(gateway: Gateway, open_gateway: Open) -> None:
    unavailable = gateway.settings.model_copy(update={"database_url": "postgresql+psycopg://nobody@127.0.0.1:1/none"})
    answer = open_gateway(unavailable).client.get("/v1/jobs/x", headers=gateway.key())
    problem(answer, 503, "ledger-unavailable")


def test_a_job_that_waits_in_the_ledger_is_seen_at_once(gateway: Gateway) -> None:
    key = gateway.key()
    answer = gateway.client.post("/v1/jobs/gateway.sync", json={"account": "b"}, headers=key)
    job = gateway.client.get(answer.headers["location"], headers=key).json()
    assert (job["kind"], job["key"]) == (Sync.kind().name, "gateway.sync:account=b")
