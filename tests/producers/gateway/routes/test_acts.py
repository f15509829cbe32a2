"""Acts over HTTP: each is in the audit log, under the name of its key."""

from __future__ import annotations

from typing import Any

from support.gateways import INVOICE, Gateway, Invoice
from support.ledgers import claimed, end, message, start_worker
from support.workflows import jobs as acme
from support.workflows.drive import move, start

from penstock.ledger.rows import audit
from penstock.producers.gateway.auth.verbs import ROUTES
from penstock.schemas import Outcome
from penstock.schemas.verbs import Verb

NIGHTLY = {"name": "nightly", "kind": "gateway.tree", "every": "1h"}
ACTS: tuple[tuple[str, str, Any, str, str], ...] = (
    ("POST", "/v1/jobs/{id}/cancel", None, "runs", "cancel"),
    ("POST", "/v1/jobs/{id}/retry", None, "dead", "retry"),
    ("POST", "/v1/deadletters/replay", {"ids": []}, "other", "replay"),
    ("POST", "/v1/deadletters/discard", {"ids": [], "reason": "old"}, "third", "discard"),
    ("POST", "/v1/schedules", NIGHTLY, "nightly", "add"),
    ("POST", "/v1/schedules/{name}/pause", None, "nightly", "pause"),
    ("POST", "/v1/schedules/{name}/resume", None, "nightly", "resume"),
    ("POST", "/v1/schedules/{name}/run", None, "nightly", "run"),
    ("POST", "/v1/schedules/{name}/backfill", {"from": "2026-03-01", "to": "2026-03-02"}, "nightly", "backfill"),
    ("DELETE", "/v1/schedules/{name}", None, "nightly", "remove"),
    ("POST", "/v1/workflows/{id}/steps/{step}/signal", {"approved": True}, "workflow", "signal"),
    ("POST", "/v1/workflows/{id}/cancel", None, "workflow", "cancel"),
    ("POST", "/v1/workflows/{id}/retry", {}, "workflow", "retry"),
)
"""Method, path, body, subject and act of each, in an order in which they succeed."""


def test_each_act_is_in_the_audit_log_under_the_name_of_the_key(gateway: Gateway) -> None:
    start_worker(gateway.database, "w1")
    ids = {"nightly": "nightly", "workflow": start(gateway.database, acme.Approved())}
    for name in ("runs", "dead", "other", "third"):
        sent = message(Invoice(**INVOICE))  # type: ignore[arg-type]
        claim = claimed(gateway.database, sent)
        ids[name] = sent.id
        if name != "runs":
            end(gateway.database, claim, Outcome.DEAD, error="ValueError: no", reason="failed")
    for method, path, body, subject, act in ACTS:
        verb = ROUTES[method, path]
        assert verb is not None
        seen = {entry.id for entry in audit.find(gateway.database)}
        where = path.replace("{id}", ids[subject]).replace("{name}", "nightly").replace("{step}", "approval")
        if isinstance(body, dict) and "ids" in body:
            body = {**body, "ids": [ids[subject]]}
        answer = gateway.client.request(method, where, json=body, headers=gateway.key(verbs=[verb]))
        assert answer.is_success, answer.text
        [entry] = [entry for entry in audit.find(gateway.database) if entry.id not in seen]
        assert (entry.actor, entry.act, entry.subject) == ("key test", act, ids[subject]), path
        move(gateway.database)  # a workflow ends once it is moved
    acting = {route for route, verb in ROUTES.items() if verb not in (None, Verb.READ, Verb.SEND)}
    assert {act[:2] for act in ACTS} == acting
