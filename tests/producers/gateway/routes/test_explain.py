"""Why a job isn't running, over HTTP; and the answers for a key with bounds."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.gateways import INVOICE, Gateway, Invoice, Open, problem
from support.ledgers import LEASE, claimed, end, message, row_of, start_worker

from penstock.ledger.members import heartbeats
from penstock.ledger.rows.waits import limit_waits
from penstock.ledger.transitions import due
from penstock.ledger.transitions.bury import bury_message
from penstock.producers.limits.rules import Rule
from penstock.producers.limits.store import LimitStore, SlotRequest
from penstock.producers.outbox import Outbox
from penstock.producers.senders import open_sender_from
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.schemas import Outcome
from penstock.schemas.jobs.limits import Concurrency
from penstock.schemas.wire.codec import Envelope, encode


def explain(gateway: Gateway, job_id: str, key: dict[str, str]) -> Any:
    return gateway.client.get(f"/v1/jobs/{job_id}/explain", headers=key)


def submit(gateway: Gateway, key: dict[str, str], **options: Any) -> str:
    answer = gateway.client.post("/v1/jobs/gateway.invoice", json=INVOICE, params=options, headers=key)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def invoice() -> Invoice:
    return Invoice(**INVOICE)  # type: ignore[arg-type]


def consume(gateway: Gateway, queue: str, name: str) -> None:
    heartbeats.register(gateway.database, name, engine="inline", queues=[queue], kinds={}, lease=LEASE)


def test_a_job_that_waits_in_the_broker_is_found_at_its_position(gateway: Gateway) -> None:
    key = gateway.key()
    submit(gateway, key)
    job_id = submit(gateway, key)
    body = explain(gateway, job_id, key).json()
    assert (body["id"], body["state"], body["facts"]["position"]) == (job_id, None, 2)
    assert "no live worker consumes queue 'invoices'" in body["because"]
    assert "penstock worker --queues invoices" in body["advice"]


def test_a_job_in_a_queue_that_only_the_broker_knows_is_found(gateway: Gateway, open_gateway: Open) -> None:
    job = replace(encode(invoice()), queue="of-other-code")
    with closing(open_sender_from(gateway.settings)) as sender:
        sender.send([job])
    fresh = open_gateway()  # the other one may have looked at the broker's queues a moment ago
    body = explain(fresh, job.id, fresh.key()).json()
    assert (body["facts"]["queue"], body["facts"]["position"]) == ("of-other-code", 1)
    bound = explain(fresh, job.id, fresh.key(queues=["invoices"]))
    problem(bound, 404, "job-not-found")


def test_a_dead_job_is_explained_with_what_to_do(gateway: Gateway) -> None:
    start_worker(gateway.database, "w1")
    sent = message(invoice(), tenant="acme")
    end(gateway.database, claimed(gateway.database, sent), Outcome.DEAD, error="broken", reason="failed")
    body = explain(gateway, sent.id, gateway.key(tenants=["acme"])).json()
    assert (body["state"], body["facts"]["reason"], body["facts"]["tenant"]) == ("dead", "failed", "acme")
    assert f"penstock deadletters replay {sent.id}" in body["advice"]


@pytest.mark.parametrize("scope", [{"kinds": ["gateway.s*"]}, {"queues": ["syncs"]}, {"tenants": ["other"]}])
def test_a_job_outside_of_the_bounds_is_not_found(gateway: Gateway, scope: dict[str, Any]) -> None:
    bound = gateway.key(**scope)
    start_worker(gateway.database, "w1")
    running = message(invoice(), tenant="acme")
    claimed(gateway.database, running)
    raw = Envelope("invoices", "normal", {"task": "who.knows", "id": "0" * 32}, b"x")
    unread = bury_message(gateway.database, raw, b"x", "unknown_kind", "because")
    unseen = submit(gateway, gateway.key())
    missing = problem(explain(gateway, "none", bound), 404, "job-not-found")
    for job_id in (running.id, unread, unseen):
        assert explain(gateway, job_id, bound).json() == missing
        assert explain(gateway, job_id, gateway.key()).status_code == 200


def test_only_its_sender_is_told_of_a_job_that_no_worker_has_seen(gateway: Gateway) -> None:
    acme, colleague = gateway.key(tenants=["acme"]), gateway.key(tenants=["acme"])
    job_id = submit(gateway, acme)
    assert explain(gateway, job_id, acme).json()["facts"]["position"] == 1
    problem(explain(gateway, job_id, colleague), 404, "job-not-found")


def test_a_job_in_the_outbox_is_explained_to_its_tenant(gateway: Gateway) -> None:
    def enqueue(delay: float | None) -> str:
        return gateway.database.write(
            lambda connection: Outbox().enqueue(connection, invoice(), tenant="acme", delay=delay).id
        )

    for job_id in (enqueue(None), enqueue(60)):
        for key in (gateway.key(), gateway.key(tenants=["acme"]), gateway.key(queues=["invoices"])):
            assert "it waits in the outbox" in explain(gateway, job_id, key).json()["because"]
        problem(explain(gateway, job_id, gateway.key(tenants=["other"])), 404, "job-not-found")


def test_a_job_that_nothing_knows_is_not_found(gateway: Gateway) -> None:
    body = problem(explain(gateway, "none", gateway.key()), 404, "job-not-found")
    assert "nor has the broker" in body["detail"]
    assert problem(explain(gateway, "none", gateway.key(kinds=["*"])), 404, "job-not-found") != body


def test_a_bound_key_is_told_of_no_host_and_no_other_queue(gateway: Gateway) -> None:
    start_worker(gateway.database, "w1")
    consume(gateway, "secret-queue", "w2")
    running = message(invoice())
    claimed(gateway.database, running)
    whole, bound = (
        explain(gateway, running.id, key).json() for key in (gateway.key(), gateway.key(queues=["invoices"]))
    )
    assert {"host", "pid"} <= whole["facts"].keys()
    assert not {"host", "pid"} & bound["facts"].keys()
    assert whole["facts"]["host"] not in str(bound)
    unseen = submit(gateway, gateway.key())
    sender = gateway.key(queues=["invoices"])
    own = submit(gateway, sender)
    assert "secret-queue" in explain(gateway, unseen, gateway.key()).text
    assert "secret-queue" not in explain(gateway, own, sender).text


def test_a_broker_that_is_unavailable_is_a_fact(gateway: Gateway, open_gateway: Open) -> None:
    start_worker(gateway.database, "w1")
    sent = message(invoice())
    end(gateway.database, claimed(gateway.database, sent), Outcome.INTERRUPTED)
    down = open_gateway(gateway.settings.model_copy(update={"broker_url": "redis://127.0.0.1:1"}))
    assert "127.0.0.1" in explain(down, sent.id, gateway.key()).json()["facts"]["broker"]
    bound = explain(down, sent.id, gateway.key(queues=["invoices"])).json()
    assert bound["facts"]["broker"] == "cannot be asked"


def test_holders_of_a_limit_are_named_within_the_bounds_and_else_counted(gateway: Gateway) -> None:
    settings, slot = gateway.settings, "gateway.shared/concurrency:"
    rule = Rule("gateway.shared/concurrency", Concurrency(2))
    start_worker(gateway.database, "w1")
    holders = {tenant: message(invoice(), tenant=tenant).id for tenant in ("acme", "other")}
    for tenant, job_id in holders.items():
        claimed(gateway.database, message(invoice(), id=job_id, tenant=tenant))
    entries = [SlotRequest(job_id, 1, ((rule, slot),)) for job_id in holders.values()]
    store = LimitStore(
        RedisConnections(settings.broker_url, timeout_seconds=10), prefix=settings.prefix, lease=LEASE, worker="w1"
    )
    store.renew([rule], entries)
    store.close()
    waiting = encode(invoice(), tenant="acme", due_at=datetime.now(UTC) + timedelta(days=1))
    due.schedule(gateway.database, [waiting])
    row = row_of(gateway.database, waiting.id)
    wait = {"job_id": row.id, "slot": slot, "enqueued_at": row.enqueued_at, "due_at": row.due_at}
    gateway.database.write(lambda connection: limit_waits.enter(connection, gateway.database, [wait]))
    whole, bound = (explain(gateway, waiting.id, key).json() for key in (gateway.key(), gateway.key(tenants=["acme"])))
    for body in (whole, bound):
        assert "held by limit gateway.shared/concurrency: 2 of 2 running" in body["because"]
    assert set(whole["facts"]["running"]) == set(holders.values())
    assert set(bound["facts"]["running"]) == {holders["acme"]}
    assert holders["other"] not in str(bound)
