from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.config.errors import ConfigError, InvalidEvent, WrongSignature
from penstock.config.sections.events import EventRule, OutgoingWebhookSettings, WebhookSettings
from penstock.config.settings import load_settings
from penstock.schemas import Job, registry
from penstock.schemas.events.cloudevents import Event
from penstock.schemas.events.rules import check_rules, jobs_of
from penstock.schemas.events.signatures import sign, verify_bearer, verify_standard
from penstock.schemas.events.webhooks import read_webhook, s3

NOW = 1_614_265_330
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'


def event(**changes: Any) -> Event:
    return Event.model_validate({"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.paid", **changes})


# The example that the libraries of Standard Webhooks test themselves with.
SIGNED = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}


def verify(headers: dict[str, str], body: bytes = BODY, secrets: tuple[str, ...] = (SECRET,), now: float = NOW) -> str:
    return verify_standard(headers, body, secrets, now=now, tolerance=300)


def test_signatures_are_those_of_standard_webhooks() -> None:
    assert sign(SECRET, SIGNED["webhook-id"], NOW, BODY) == SIGNED
    assert verify(SIGNED) == SIGNED["webhook-id"]
    assert verify(SIGNED, secrets=("whsec_AAAA", SECRET)) == SIGNED["webhook-id"]
    assert verify({**SIGNED, "webhook-signature": "v2,x v1,AAAA " + SIGNED["webhook-signature"]})


def test_a_secret_without_its_prefix_is_base64_as_in_the_libraries_of_standard_webhooks() -> None:
    bare = SECRET.removeprefix("whsec_")
    assert sign(bare, SIGNED["webhook-id"], NOW, BODY) == SIGNED
    assert verify(SIGNED, secrets=(bare,)) == SIGNED["webhook-id"]
    assert verify(SIGNED, secrets=("AAAA", bare)) == SIGNED["webhook-id"]


@pytest.mark.parametrize("secret", ["not base64", "whsec_not base64", "whsec_", "whsec_é", "a"])
def test_a_secret_of_standard_webhooks_that_is_not_base64_is_refused_by_the_name_of_its_setting(secret: str) -> None:
    with pytest.raises(ConfigError, match=r"^webhooks\.shop\.secret: .*base64"):
        WebhookSettings(scheme="standard", secret=secret).secrets("shop")
    with pytest.raises(ConfigError, match=r"^hooks\.shop\.secret: .*base64"):
        OutgoingWebhookSettings(secret=("c2VjcmV0", secret)).secrets("shop")
    assert WebhookSettings(scheme="github", secret=secret).secrets("shop") == [secret]


def test_a_webhooks_id_is_signed_as_the_bytes_of_its_header() -> None:
    signed = sign(SECRET, "msg_é", NOW, BODY)
    received = {name: value.encode().decode("latin-1") for name, value in signed.items()}
    assert verify(received) == "msg_é"
    with pytest.raises(WrongSignature, match="webhook-id is not UTF-8"):
        verify({**received, "webhook-id": "msg_é"})


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_bearers_secret_may_be_sent_in_either_encoding(encoding: str) -> None:
    received = "Bearer gehéim".encode(encoding).decode("latin-1")
    verify_bearer({"authorization": received}, ["gehéim"])
    with pytest.raises(WrongSignature):
        verify_bearer({"authorization": received}, ["geheim"])


@pytest.mark.parametrize(
    ("changes", "body", "now"),
    [
        ({}, BODY + b" ", NOW),
        ({"webhook-id": "msg_other"}, BODY, NOW),
        ({"webhook-timestamp": "1614265331"}, BODY, NOW),
        ({"webhook-timestamp": ""}, BODY, NOW),
        ({"webhook-signature": "v1,"}, BODY, NOW),
        ({"webhook-signature": "v1"}, BODY, NOW),
        ({"webhook-signature": "v1,é"}, BODY, NOW),
        ({}, BODY, NOW + 301),
        ({}, BODY, NOW - 301),
    ],
)
def test_a_wrong_or_old_signature_is_refused(changes: dict[str, str], body: bytes, now: float) -> None:
    with pytest.raises(WrongSignature):
        verify({**SIGNED, **changes}, body, now=now)


@given(st.dictionaries(st.sampled_from(sorted(SIGNED)), st.text(max_size=40)), st.binary(max_size=20))
def test_a_random_signature_is_refused(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(WrongSignature):
        verify(headers, body)


def webhook(scheme: Any, headers: dict[str, str], body: bytes, **options: Any) -> list[Event]:
    settings = WebhookSettings(scheme=scheme, secret="secret")
    return read_webhook(
        "shop", settings, ["secret"], headers, body, now=NOW, storage_url="s3://photos/in?region=x", **options
    )


def hexdigest(body: bytes) -> str:
    return hmac.new(b"secret", body, hashlib.sha256).hexdigest()


def test_githubs_webhook_is_named_like_its_event() -> None:
    body = b'{"action": "opened", "number": 7}'
    headers = {"x-hub-signature-256": f"sha256={hexdigest(body)}", "x-github-event": "pull_request"}
    [first] = webhook("github", {**headers, "x-github-delivery": "d1"}, body)
    [again] = webhook("github", {**headers, "x-github-delivery": "d2"}, body)
    assert (first.type, first.source, first.data["number"]) == ("com.github.pull_request.opened", "/webhooks/shop", 7)
    assert first.extensions == {"delivery": "d1"}
    assert first.id == again.id  # the delivery's number is not signed
    for wrong in ("", "sha256=", f"sha1={hexdigest(body)}", f"sha256={hexdigest(b'')}", hexdigest(body)):
        with pytest.raises(WrongSignature):
            webhook("github", {**headers, "x-hub-signature-256": wrong}, body)
    with pytest.raises(InvalidEvent, match="x-github-event"):
        webhook("github", {**headers, "x-github-event": ""}, body)


def test_stripes_webhook_is_named_like_its_type() -> None:
    body = b'{"id": "evt_1", "type": "invoice.paid", "data": {"object": {"id": "in_1"}}}'
    signature = hexdigest(str(NOW).encode() + b"." + body)
    [events] = webhook("stripe", {"stripe-signature": f"t={NOW},v1={'0' * 64},v1={signature},v0=x"}, body)
    assert (events.id, events.type) == ("evt_1", "invoice.paid")
    old = NOW - 301
    stale = hexdigest(str(old).encode() + b"." + body)
    for wrong in ("", "t=,v1=", f"t={NOW}", f"t={NOW + 1},v1={signature}", f"t={old},v1={stale}", f"v1={signature}"):
        with pytest.raises(WrongSignature):
            webhook("stripe", {"stripe-signature": wrong}, body)


def test_a_bearers_secret_lets_in() -> None:
    [events] = webhook("bearer", {"authorization": "Bearer secret"}, b'{"type": "a.b", "id": "7"}')
    assert (events.id, events.type) == ("7", "a.b")
    for wrong in ("", "Bearer", "Bearer secrets", "Basic secret"):
        with pytest.raises(WrongSignature):
            webhook("bearer", {"authorization": wrong}, b"{}")
    for body in (b"", b"[]", b"{", b'{"type": 7}'):
        with pytest.raises(InvalidEvent):
            webhook("bearer", {"authorization": "bearer secret"}, body)


# As S3's documentation shows one, shortened.
RECORD: dict[str, Any] = {
    "eventSource": "aws:s3",
    "awsRegion": "eu-central-1",
    "eventTime": "2026-01-31T12:00:00.000Z",
    "eventName": "ObjectCreated:Put",
    "responseElements": {"x-amz-request-id": "C3D13FE58DE4C810"},
    "s3": {
        "bucket": {"name": "photos"},
        "object": {"key": "in/my+photo%C3%A9.jpg", "size": 1024, "eTag": "d41d", "sequencer": "0055AED6DCD90281E5"},
    },
}


def test_a_notification_of_s3_is_an_event_of_its_object() -> None:
    [events] = webhook("bearer", {"authorization": "secret"}, json.dumps({"Records": [RECORD]}).encode())
    assert (events.type, events.source) == ("com.amazonaws.s3.ObjectCreated:Put", "aws:s3.eu-central-1.photos")
    assert events.subject == "in/my photoé.jpg"
    assert (events.data["key"], events.data["storage_key"]) == ("in/my photoé.jpg", "my photoé.jpg")
    [again] = s3({"Records": [RECORD]}, "file:storage")
    assert again.id == events.id
    assert "storage_key" not in again.data
    [minio] = s3({"Records": [{**RECORD, "eventSource": "minio:s3", "eventName": "s3:ObjectCreated:Put"}]}, "file:x")
    assert (minio.type, minio.source) == (events.type, "minio:s3.eu-central-1.photos")
    assert list(s3({"Event": "s3:TestEvent"}, "file:x")) == []


@pytest.mark.parametrize("records", [7, [7], [{}], [{**RECORD, "s3": None}], [{**RECORD, "eventTime": "x"}]])
def test_a_body_that_is_not_an_s3_notification_is_refused(records: Any) -> None:
    with pytest.raises(InvalidEvent):
        list(s3({"Records": records}, "file:x"))


class Ship(Job, kind="rules.ship"):
    order: int
    express: bool = False


def test_rules_pick_a_jobs_fields_from_an_event() -> None:
    rules = {
        "by_path": EventRule(
            type="order.*", kind="rules.ship", fields={"order": "data.lines.0.id", "express": "express"}
        ),
        "whole": EventRule(type=["x", "order.paid"], kind="rules.ship", values={"express": True}),
        "of_others": EventRule(type="*", source="/other", kind="rules.ship"),
        "of_subject": EventRule(type="*", subject="7?", kind="rules.ship", fields={"order": "subject"}),
    }
    jobs = jobs_of(event(data={"lines": [{"id": 7}]}), {"by_path": rules["by_path"]})
    assert [(match.rule, match.job) for match in jobs] == [("by_path", Ship(order=7))]
    jobs = jobs_of(event(subject="71", data={"order": 8}), {name: rules[name] for name in rules if name != "by_path"})
    assert [(match.rule, match.job) for match in jobs] == [
        ("whole", Ship(order=8, express=True)),
        ("of_subject", Ship(order=71)),
    ]
    assert jobs_of(event(type="Order.paid"), {"by_path": rules["by_path"]}) == []


@pytest.mark.parametrize("data", [None, 7, {"order": "x"}, {"order": 1, "more": 2}, b"x"])
def test_an_event_that_does_not_make_its_job_names_the_rule_and_the_field(data: Any) -> None:
    rules = {"whole": EventRule(type="*", kind="rules.ship")}
    with pytest.raises(InvalidEvent, match="rule whole"):
        jobs_of(event(data=data), rules)


def test_a_rule_that_nothing_could_satisfy_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text(
        '[events.a]\ntype = "*"\nkind = "rules.nowhere"\n'
        '[events.b]\ntype = "*"\nkind = "rules.ship"\nfields = { ordre = "data.id" }\nvalues = { fast = true }\n'
        '[events.c]\ntype = "*"\nkind = "rules.ship"\nvalues = { express = true }\n'
    )
    settings = load_settings(file)
    with pytest.raises(ConfigError) as raised:
        check_rules(settings.events, settings.file)
    lines = str(raised.value).splitlines()
    assert f"{file}:3: events.a.kind: no imported module defines kind 'rules.nowhere'" in lines[0]
    assert f"{file}:7: events.b.fields: kind rules.ship has no field 'ordre'" in lines
    assert f"{file}:8: events.b.values: kind rules.ship has no field 'fast'" in lines
    assert f"{file}:7: events.b.fields: kind rules.ship needs order too" in lines
    assert len(lines) == 4
    assert registry.find("rules.ship") is not None


def test_a_wrong_rule_is_reported_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text('[webhooks.shop]\nscheme = "md5"\nsecret = "x"\n[events.a]\nkind = "rules.ship"\n')
    with pytest.raises(ConfigError) as raised:
        load_settings(file)
    assert f"{file}:2: webhooks.shop.scheme" in str(raised.value)
    assert f"{file}:4: events.a.type" in str(raised.value)


def test_secrets_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = WebhookSettings(scheme="github", secret=("${SHOP_SECRET}", "old"))
    with pytest.raises(ConfigError, match="SHOP_SECRET"):
        settings.secrets("shop")
    monkeypatch.setenv("SHOP_SECRET", "new\n")
    assert settings.secrets("shop") == ["new", "old"]
    monkeypatch.setenv("SHOP_SECRET", " ")
    with pytest.raises(ConfigError, match="empty"):
        settings.secrets("shop")
    assert "old" not in repr(settings)
