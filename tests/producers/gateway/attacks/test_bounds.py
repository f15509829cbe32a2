"""Keys of one kind, queue or tenant, which try to reach what is others', or to learn its names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.gateways import INVOICE, Gateway, Invoice, Open, Sync, problem
from support.ledgers import claimed, end, message, row_of, start_worker, stock_envelope
from support.workflows import jobs as acme
from support.workflows.drive import start

from penstock.config.sections.events import EventRule
from penstock.ledger.rows import audit
from penstock.ledger.schedules import commands as schedules
from penstock.ledger.transitions.bury import bury_message
from penstock.ledger.workflows import commands as workflows
from penstock.schemas import Job, Outcome
from penstock.schemas.builtin.emails import SendEmail

SYNC = {"account": "a"}
NAMES = ("gateway.invoice", "invoices", "gateway.tree", "trees", "gateway.only", "email.send", "wf.trip", "umbrella")
"""Names of kinds, queues and a tenant that a key for `gateway.sync` has nothing to do with."""


def die(gateway: Gateway, job: Job, **options: Any) -> str:
    start_worker(gateway.database, "w1")
    sent = message(job, **options)
    end(gateway.database, claimed(gateway.database, sent), Outcome.DEAD, error="ValueError: no", reason="failed")
    return sent.id


def post(gateway: Gateway, path: str, key: dict[str, str], **options: Any) -> Any:
    return gateway.client.post(f"/v1{path}", headers=key, **options)


def bury_in(gateway: Gateway, queue: str, kind: str, **fields: Any) -> str:
    """The id of a Celery client's message that was not read, and is dead in this queue."""
    envelope = stock_envelope(kind, fields, queue=queue)
    return bury_message(gateway.database, envelope, envelope.body, "invalid_payload", "it was not read")


# Queues and kinds.


def test_a_key_of_one_queue_sends_to_no_other(gateway: Gateway) -> None:
    key = gateway.key(queues=["syncs"], verbs=["send"])
    problem(post(gateway, "/jobs/gateway.sync", key, json=SYNC, params={"queue": "trees"}), 403, "queue-not-allowed")
    problem(post(gateway, "/jobs/gateway.invoice", key, json=INVOICE), 403, "queue-not-allowed")
    item = {"kind": "gateway.sync", "payload": SYNC, "queue": "trees"}
    [answer] = post(gateway, "/jobs", key, json={"jobs": [item]}).json()["jobs"]
    assert answer["status"] == 403
    assert gateway.sent("trees") == gateway.sent("invoices") == []
    allowed = post(gateway, "/jobs/gateway.invoice", key, json=INVOICE, params={"queue": "syncs"})
    assert allowed.status_code == 202


@pytest.mark.parametrize("scope", [{"queues": ["syncs"]}, {"kinds": ["gateway.sync"]}, {"tenants": ["acme"]}])
def test_dead_letters_of_others_are_neither_retried_nor_replayed(gateway: Gateway, scope: dict[str, Any]) -> None:
    key = gateway.key(**scope)
    other = die(gateway, Invoice(**INVOICE), tenant="umbrella")  # type: ignore[arg-type]
    own = die(gateway, Sync(account="a"), tenant="acme")
    problem(post(gateway, f"/jobs/{other}/retry", key), 404, "job-not-found")
    problem(post(gateway, f"/jobs/{other}/cancel", key), 404, "job-not-found")
    for act, more in (("replay", {}), ("replay", {"edit": {"number": 1}}), ("discard", {"reason": "x"})):
        answer = post(gateway, f"/deadletters/{act}", key, json={"ids": [other], **more})
        [result] = answer.json()["dead_letters"]
        assert result["problem"]["status"] == 404
        assert "kind" not in result
    groups = gateway.client.get("/v1/deadletters/groups", headers=key).json()["groups"]
    assert [group["newest_id"] for group in groups] == [own]
    assert post(gateway, "/deadletters/replay", key, json={"all": True}).json()["replayed"] == 1
    assert row_of(gateway.database, other).state == "dead"
    assert audit.find(gateway.database, subject=other) == []


def test_a_message_that_is_read_again_does_not_leave_the_bounds_of_the_key(gateway: Gateway) -> None:
    unread = bury_in(gateway, "syncs", "gateway.invoice", **INVOICE)
    key = gateway.key(queues=["syncs"])
    [result] = post(gateway, "/deadletters/replay", key, json={"ids": [unread]}).json()["dead_letters"]
    assert result["problem"]["status"] == 404
    problem(post(gateway, f"/jobs/{unread}/retry", key), 404, "job-not-found")
    assert row_of(gateway.database, unread).state == "dead"
    both = gateway.key(queues=["syncs", "invoices"])
    assert post(gateway, "/deadletters/replay", both, json={"ids": [unread]}).json()["replayed"] == 1


def test_a_key_without_kinds_edits_no_job_of_a_built_in_one(gateway: Gateway) -> None:
    mail = SendEmail(to=["ada@example.com"], subject="Hello", text="Hello")  # type: ignore[list-item]
    job_id = die(gateway, mail)
    edit = {"ids": [job_id], "edit": {"to": ["eve@example.com"]}}
    problem(post(gateway, "/deadletters/replay", gateway.key(), json=edit), 403, "kind-not-allowed")
    assert "ada" in row_of(gateway.database, job_id).payload
    assert row_of(gateway.database, job_id).state == "dead"
    named = post(gateway, "/deadletters/replay", gateway.key(kinds=["email.*"]), json=edit)
    assert named.json()["replayed"] == 1


# Tenants.


def test_schedules_and_workflows_of_others_are_not_there(gateway: Gateway) -> None:
    key = gateway.key(tenants=["acme"])
    schedules.add(gateway.database, "nightly", {"kind": "gateway.tree", "cron": "0 3 * * *"}, actor="ada")
    workflow_id = start(gateway.database, acme.Trip(), tenant="umbrella")
    assert gateway.client.get("/v1/schedules", headers=key).json() == {"schedules": []}
    assert gateway.client.get("/v1/workflows", headers=key).json() == {"workflows": []}
    for act in ("run", "pause", "resume"):
        problem(post(gateway, f"/schedules/nightly/{act}", key), 404, "schedule-not-found")
    for act in ("cancel", "retry", "steps/approval/signal"):
        problem(post(gateway, f"/workflows/{workflow_id}/{act}", key, json={}), 404, "workflow-not-found")
    assert workflows.show(gateway.database, workflow_id).row.state == "running"
    assert audit.find(gateway.database, subject=workflow_id) == []


# Names in answers.


def test_no_answer_names_what_is_not_for_the_key(gateway: Gateway, open_gateway: Open) -> None:
    rule = EventRule(kind="gateway.invoice", type=("*",))
    gateway = open_gateway(gateway.settings.model_copy(update={"events": {"paid": rule}}))
    die(gateway, Invoice(**INVOICE), tenant="umbrella")  # type: ignore[arg-type]
    start(gateway.database, acme.Trip(), tenant="umbrella")
    values = {"kind": "gateway.tree", "cron": "0 3 * * *"}
    schedules.add(gateway.database, "nightly", values, actor="ada")
    key = gateway.key(kinds=["gateway.sync", "gateway.x*"], queues=["syncs", "none.*"], tenants=["acme"])
    event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "paid", "data": {"number": "x"}}
    headers = {**key, "content-type": "application/cloudevents+json"}
    answers = [
        post(gateway, "/jobs/gateway.sync", key, json=SYNC, params={"queue": "none.such"}),
        post(gateway, "/jobs/gateway.sync", key, json=SYNC, params={"queue": "elsewhere"}),
        post(gateway, "/jobs/gateway.sync", key, json=SYNC, params={"tenant": "other"}),
        post(gateway, "/jobs/gateway.bill", key, json=INVOICE),
        post(gateway, "/jobs/gateway.invoic", key, json=INVOICE),
        post(gateway, "/jobs/gateway.xerox", key, json=INVOICE),
        post(gateway, "/jobs/gateway.sync", key, json={"account": 1}),
        post(gateway, "/jobs", key, json={"jobs": [{"kind": "gateway.bill"}, {"kind": "gateway.sync", "queue": "?"}]}),
        post(gateway, "/schedules", key, json={"name": "a", "kind": "gateway.bill", "cron": "* * * * *"}),
        post(gateway, "/schedules/nightl/run", key),
        gateway.client.post("/v1/events", headers=headers, content=json.dumps(event)),
        post(gateway, "/webhooks/none", key),
        *(
            gateway.client.get(f"/v1/{path}", headers=key)
            for path in (
                "kinds/gateway.bill",
                "kinds",
                "../openapi.json",
                "deadletters",
                "deadletters/none",
                "deadletters/groups",
                "deadletters?before=none",
                "workflows?kind=none",
                "workflows/none",
                "schedules",
                "jobs/none",
                "jobs/none/explain",
                "nothing",
            )
        ),
    ]
    for answer in answers:
        leaks = [name for name in NAMES if name in answer.text]
        assert not leaks, f"{answer.request.method} {answer.request.url}: {answer.text[:500]}"
    every = gateway.key()
    unknown = post(gateway, "/jobs/gateway.sync", every, json=SYNC, params={"queue": "none.such"})
    assert "invoices" not in str(problem(unknown, 422, "invalid-job"))


def test_a_key_of_some_kinds_does_not_learn_which_others_there_are(gateway: Gateway) -> None:
    key = gateway.key(kinds=["gateway.sync", "shop.*"])
    for name in ("gateway.invoice", "gateway.bill", "gateway.nothing"):
        details = problem(post(gateway, f"/jobs/{name}", key, json={}), 403, "kind-not-allowed")
        assert details["detail"] == f"this key is not for kind {name!r}"
        problem(gateway.client.get(f"/v1/kinds/{name}", headers=key), 403, "kind-not-allowed")
    problem(post(gateway, "/jobs/shop.nothing", key, json={}), 404, "unknown-kind")


def test_a_batch_lists_a_bounded_number_of_errors(gateway: Gateway) -> None:
    item = {"kind": "gateway.invoice", "payload": {**INVOICE, "lines": [0] * 200}}
    answer = post(gateway, "/jobs", gateway.key(), json={"jobs": [item] * 300})
    assert answer.status_code == 207
    listed = [len(job["problem"]["errors"]) for job in answer.json()["jobs"]]
    assert (set(listed), len(listed)) == ({2}, 300), "one, and how many more"
    [alone] = post(gateway, "/jobs", gateway.key(), json={"jobs": [item]}).json()["jobs"]
    assert len(alone["problem"]["errors"]) == 101
