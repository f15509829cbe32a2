"""CloudEvents and webhooks over HTTP, and the jobs that rules make of them."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from support.gateways import SECRET, Gateway, problem
from support.ledgers import set_up

from penstock.config.errors import BrokerUnavailable, ConfigError
from penstock.config.sections.events import EventRule, WebhookSettings
from penstock.config.settings import Settings
from penstock.producers.enqueue.async_producer import AsyncProducer
from penstock.producers.gateway import create_app
from penstock.schemas.events.signatures import sign
from penstock.workers.local.up.redis_server import RedisServer

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"


@pytest.fixture(scope="module")
def settings(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("events")
    return Settings(
        broker_url=redis_server.url,
        database_url=set_up(f"sqlite:///{folder}/ledger.db"),
        storage_url="s3://photos/in",
        prefix=f"t{uuid.uuid4().hex[:10]}",
        token_secret=SECRET,
        events={
            "paid": EventRule(
                type="order.paid",
                kind="gateway.invoice",
                fields={"number": "data.order.number", "to": "data.order.email"},
            ),
            "accounts": EventRule(type="account.*", kind="gateway.only", fields={"account": "subject"}),
            "pushed": EventRule(type=("com.github.push", "shop.pushed"), kind="gateway.tree", fields={"data": "data"}),
            "uploaded": EventRule(
                type="com.amazonaws.s3.ObjectCreated:*", kind="upload.process", fields={"key": "data.storage_key"}
            ),
        },
        webhooks={
            "shop": WebhookSettings(scheme="standard", secret="whsec_c2VjcmV0", tenant="acme"),
            "github": WebhookSettings(scheme="github", secret="secret"),
            "stripe": WebhookSettings(scheme="stripe", secret="secret"),
            "minio": WebhookSettings(scheme="bearer", secret=("new", "old")),
        },
    )


def paid(**changes: Any) -> dict[str, Any]:
    order = {"order": {"number": 7, "email": "ada@example.com"}}
    return {"specversion": "1.0", "id": new(), "source": "/shop", "type": "order.paid", "data": order, **changes}


def new() -> str:
    return uuid.uuid4().hex


def send(gateway: Gateway, body: Any, content_type: str = STRUCTURED, **scope: Any) -> Any:
    headers = {**gateway.key(**scope), "Content-Type": content_type}
    return gateway.client.post("/v1/events", content=json.dumps(body), headers=headers)


def test_a_structured_event_becomes_a_job_with_its_trace_and_tenant(gateway: Gateway) -> None:
    parent = f"00-{'1' * 32}-{'2' * 16}-01"
    answer = send(gateway, paid(traceparent=parent, tenant="acme"))
    assert answer.status_code == 202
    [job] = answer.json()["events"][0]["jobs"]
    assert (job["rule"], job["kind"], job["created"]) == ("paid", "gateway.invoice", True)
    [sent] = gateway.sent("invoices")
    assert sent["id"] == job["id"]
    assert (sent["payload"]["number"], sent["payload"]["to"]) == (7, "ada@example.com")
    assert sent["penstock"]["tenant"] == "acme"
    assert sent["penstock"]["traceparent"].split("-")[1] == "1" * 32


def test_a_binary_event_becomes_a_job(gateway: Gateway) -> None:
    headers = {"ce-specversion": "1.0", "ce-id": new(), "ce-source": "/shop", "ce-type": "order.paid"}
    body = {"order": {"number": 8, "email": "ada@example.com"}}
    answer = gateway.client.post("/v1/events", json=body, headers={**headers, **gateway.key()})
    assert answer.status_code == 202, answer.text
    assert [headers["payload"]["number"] for headers in gateway.sent("invoices")] == [8]


def test_a_header_of_a_binary_event_may_be_raw_utf_8(gateway: Gateway) -> None:
    def answer_to(subject: bytes) -> Any:
        event = {"ce-specversion": "1.0", "ce-id": new(), "ce-source": "/shop", "ce-type": "account.opened"}
        headers = [(name.encode(), value.encode()) for name, value in {**event, **gateway.key()}.items()]
        return gateway.client.post("/v1/events", headers=[*headers, (b"ce-subject", subject)])

    for subject in ("grüße ✓".encode(), b"gr%C3%BC%C3%9Fe \xe2\x9c\x93"):
        assert answer_to(subject).status_code == 202
    assert [sent["payload"]["account"] for sent in gateway.sent("syncs")] == ["grüße ✓"]  # unique by its account
    refused = problem(answer_to("grüße".encode("latin-1")), 422, "invalid-event")
    assert refused["errors"][0]["attribute"] == "subject"


def test_an_event_that_comes_again_makes_no_further_job(gateway: Gateway) -> None:
    event, key = paid(), gateway.key()
    headers = {**key, "Content-Type": STRUCTURED}
    answers = [gateway.client.post("/v1/events", content=json.dumps(event), headers=headers) for _ in range(3)]
    assert [answer.json() for answer in answers] == [answers[0].json()] * 3
    assert len(gateway.sent("invoices")) == 1
    gateway.client.post("/v1/events", content=json.dumps({**event, "source": "/shop/2"}), headers=headers)
    assert len(gateway.sent("invoices")) == 2


def test_a_batch_of_events_is_answered_event_by_event(gateway: Gateway) -> None:
    answer = send(gateway, [paid(), paid(id=""), paid(data={}), paid(type="nobody.cares")], BATCH)
    assert answer.status_code == 207
    body = answer.json()
    assert (body["accepted"], body["refused"]) == (2, 2)
    assert [answer["status"] for answer in body["events"]] == [202, 422, 422, 202]
    assert body["events"][1]["problem"]["errors"][0]["attribute"] == "id"
    assert "rule paid" in body["events"][2]["problem"]["detail"]
    assert body["events"][3]["jobs"] == []
    assert len(gateway.sent("invoices")) == 1


def test_an_event_needs_the_scopes_of_its_jobs(gateway: Gateway) -> None:
    problem(send(gateway, paid(), kinds=["gateway.sync"]), 403, "kind-not-allowed")
    problem(send(gateway, paid(tenant="other"), tenants=["acme"]), 403, "tenant-not-allowed")
    problem(
        gateway.client.post("/v1/events", content=b"{}", headers={"Content-Type": STRUCTURED}), 401, "unauthenticated"
    )
    assert gateway.sent("invoices") == []


def test_a_unique_job_is_answered_with_the_one_that_holds_its_key(gateway: Gateway) -> None:
    account = new()
    [first] = send(gateway, paid(type="account.new", subject=account)).json()["events"][0]["jobs"]
    [second] = send(gateway, paid(type="account.new", subject=account)).json()["events"][0]["jobs"]
    assert (first["created"], second["created"]) == (True, False)
    assert second["id"] == first["id"]


@pytest.mark.parametrize(
    ("content_type", "body", "status", "attribute"),
    [
        ("application/json", b"{}", 415, "content-type"),
        ("text/plain", b"x", 415, "content-type"),
        (STRUCTURED + "; charset=latin-1", b"{}", 415, "content-type"),
        (STRUCTURED, b"{", 422, "the body"),
        (STRUCTURED, b"[" * 100_000, 422, "the body"),
        (STRUCTURED, b"{}", 422, "specversion"),
        ("application/json", b"{", 422, "the body"),
    ],
)
def test_an_invalid_event_is_refused_with_the_attribute(
    gateway: Gateway, content_type: str, body: bytes, status: int, attribute: str
) -> None:
    headers = {**gateway.key(), "Content-Type": content_type}
    answer = problem(gateway.client.post("/v1/events", content=body, headers=headers), status, "invalid-event")
    assert answer["errors"][0]["attribute"] == attribute


def test_a_standard_webhook_is_believed(gateway: Gateway) -> None:
    body = json.dumps({"type": "order.paid", "order": {"number": 9, "email": "ada@example.com"}}).encode()
    wrapped = json.dumps({"type": "shop.pushed", "what": "it"}).encode()
    headers = sign("whsec_c2VjcmV0", new(), int(time.time()), wrapped)
    assert gateway.client.post("/v1/webhooks/shop", content=wrapped, headers=headers).status_code == 202
    [sent] = gateway.sent("trees")
    assert (sent["payload"]["data"]["what"], sent["penstock"]["tenant"]) == ("it", "acme")

    problem(gateway.client.post("/v1/webhooks/shop", content=body, headers=headers), 401, "wrong-signature")
    old = sign("whsec_c2VjcmV0", new(), int(time.time()) - 400, body)
    problem(gateway.client.post("/v1/webhooks/shop", content=body, headers=old), 401, "wrong-signature")
    problem(gateway.client.post("/v1/webhooks/shop", content=body), 401, "wrong-signature")
    problem(gateway.client.post("/v1/webhooks/nobody", content=body), 404, "unknown-webhook")
    # Signed, but no order as the rule expects one: `data` is the whole body here.
    fresh = sign("whsec_c2VjcmV0", new(), int(time.time()), b'{"type": "order.paid"}')
    answer = gateway.client.post("/v1/webhooks/shop", content=b'{"type": "order.paid"}', headers=fresh)
    problem(answer, 422, "invalid-event")


def test_a_replay_of_githubs_under_another_delivery_makes_no_further_job(gateway: Gateway) -> None:
    body = json.dumps({"ref": new()}).encode()
    signature = hmac.new(b"secret", body, hashlib.sha256).hexdigest()
    for delivery in ("1", "2"):
        headers = {
            "X-Hub-Signature-256": f"sha256={signature}",
            "X-GitHub-Event": "push",
            "X-GitHub-Delivery": delivery,
        }
        assert gateway.client.post("/v1/webhooks/github", content=body, headers=headers).status_code == 202
    assert len(gateway.sent("trees")) == 1


def test_stripes_webhook_is_believed(gateway: Gateway) -> None:
    body = json.dumps({"id": new(), "type": "shop.pushed"}).encode()
    now = str(int(time.time()))
    signature = hmac.new(b"secret", now.encode() + b"." + body, hashlib.sha256).hexdigest()
    headers = {"Stripe-Signature": f"t={now},v1={signature}"}
    assert gateway.client.post("/v1/webhooks/stripe", content=body, headers=headers).status_code == 202
    assert len(gateway.sent("trees")) == 1
    problem(gateway.client.post("/v1/webhooks/stripe", content=body + b" ", headers=headers), 401, "wrong-signature")


def signed_standard(body: bytes, number: str, at: int) -> dict[str, str]:
    return sign("whsec_c2VjcmV0", number, at, body)


def signed_stripe(body: bytes, number: str, at: int) -> dict[str, str]:
    signature = hmac.new(b"secret", f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return {"Stripe-Signature": f"t={at},v1={signature}"}


def signed_github(body: bytes, number: str, at: int) -> dict[str, str]:
    signature = hmac.new(b"secret", body, hashlib.sha256).hexdigest()
    return {"X-Hub-Signature-256": f"sha256={signature}", "X-GitHub-Event": "push", "X-GitHub-Delivery": number}


Signed = Callable[[bytes, str, int], dict[str, str]]
SIGNED = pytest.mark.parametrize(
    ("name", "signed"), [("shop", signed_standard), ("stripe", signed_stripe), ("github", signed_github)]
)


def pushed() -> bytes:
    return json.dumps({"id": new(), "type": "shop.pushed"}).encode()


@SIGNED
def test_a_replay_is_refused(gateway: Gateway, name: str, signed: Signed) -> None:
    body, path = pushed(), f"/v1/webhooks/{name}"
    headers = signed(body, new(), int(time.time()))
    assert gateway.client.post(path, content=body, headers=headers).status_code == 202
    for _ in range(2):
        problem(gateway.client.post(path, content=body, headers=headers), 409, "replayed")
    assert len(gateway.sent("trees")) == 1
    other = pushed()
    answer = gateway.client.post(path, content=other, headers=signed(other, new(), int(time.time())))
    assert answer.status_code == 202
    assert len(gateway.sent("trees")) == 2


@pytest.mark.parametrize("changed", ["v1=00,{}", "{},v1=00", "{},v0=1"])
def test_a_replay_is_refused_whatever_surrounds_its_signature(gateway: Gateway, changed: str) -> None:
    body = pushed()
    headers = signed_stripe(body, "", int(time.time()))
    assert gateway.client.post("/v1/webhooks/stripe", content=body, headers=headers).status_code == 202
    headers = {name: changed.format(value) for name, value in headers.items()}
    problem(gateway.client.post("/v1/webhooks/stripe", content=body, headers=headers), 409, "replayed")


@pytest.mark.parametrize(("name", "signed"), [("shop", signed_standard), ("stripe", signed_stripe)])
def test_a_sender_that_tries_again_is_answered_as_the_first_time(gateway: Gateway, name: str, signed: Signed) -> None:
    body, number, now = pushed(), new(), int(time.time())
    tries = [signed(body, number, at) for at in (now - 2, now - 1, now)]
    answers = [gateway.client.post(f"/v1/webhooks/{name}", content=body, headers=headers) for headers in tries]
    assert [answer.status_code for answer in answers] == [202] * 3
    assert [answer.json() for answer in answers] == [answers[0].json()] * 3
    assert len(gateway.sent("trees")) == 1
    for headers in tries:  # each of them was a message
        problem(gateway.client.post(f"/v1/webhooks/{name}", content=body, headers=headers), 409, "replayed")


@SIGNED
def test_a_message_that_was_not_taken_may_come_again(
    gateway: Gateway, name: str, signed: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, path = pushed(), f"/v1/webhooks/{name}"
    headers = signed(body, new(), int(time.time()))

    async def unavailable(*_arguments: Any) -> Any:
        raise BrokerUnavailable("not there")

    with monkeypatch.context() as patch:
        patch.setattr(AsyncProducer, "enqueue_each", unavailable)
        problem(gateway.client.post(path, content=body, headers=headers), 503, "broker-unavailable")
    assert gateway.sent("trees") == []
    assert gateway.client.post(path, content=body, headers=headers).status_code == 202
    problem(gateway.client.post(path, content=body, headers=headers), 409, "replayed")
    assert len(gateway.sent("trees")) == 1


@SIGNED
def test_simultaneous_copies_of_a_webhook_are_accepted_once(gateway: Gateway, name: str, signed: Signed) -> None:
    body, copies = pushed(), 4
    headers, together = signed(body, new(), int(time.time())), Barrier(copies)

    def post(_number: int) -> Any:
        together.wait(60)
        return gateway.client.post(f"/v1/webhooks/{name}", content=body, headers=headers)

    with ThreadPoolExecutor(copies) as pool:
        answers = list(pool.map(post, range(copies)))
    assert sorted(answer.status_code for answer in answers) == [202, 409, 409, 409]
    assert len(gateway.sent("trees")) == 1


@pytest.mark.parametrize("path", ["/v1/events", "/v1/webhooks/minio"])
def test_an_upload_to_s3_is_processed(gateway: Gateway, path: str) -> None:
    place = {"bucket": {"name": "photos"}, "object": {"key": "in/a+b.jpg", "size": 3, "sequencer": new()}}
    record = {
        "eventSource": "minio:s3",
        "awsRegion": "",
        "eventTime": "2026-01-31T12:00:00.000Z",
        "eventName": "s3:ObjectCreated:Put",
        "s3": place,
    }
    headers = gateway.key(kinds=["upload.process"]) if path == "/v1/events" else {"Authorization": "Bearer old"}
    answer = gateway.client.post(path, json={"EventName": "x", "Records": [record, record]}, headers=headers)
    assert answer.status_code == 202, answer.text
    assert [headers["payload"]["key"] for headers in gateway.sent("uploads")] == ["a b.jpg"]


def test_a_gateway_does_not_start_with_a_rule_or_secret_that_cannot_work(settings: Settings, tmp_path: Path) -> None:
    def other(**changes: Any) -> Settings:
        return settings.model_copy(update=changes)

    with pytest.raises(ConfigError, match=r"events\.a\.kind"):
        create_app(other(events={"a": EventRule(type="*", kind="gateway.nowhere")}))
    for secret in ("${PENSTOCK_TEST_NOT_SET}", "whsec_é", "whsec_", "a text that is not base64"):
        with pytest.raises(ConfigError, match=r"webhooks\.a\.secret"):
            create_app(other(webhooks={"a": WebhookSettings(scheme="standard", secret=secret)}))
