"""Authentication and authorization: API keys, tokens of an identity provider, and quotas."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.gateways import INVOICE, Gateway, Open, problem
from support.polling import WAIT_SECONDS, until_async

from penstock.ledger.members import api_keys
from penstock.ledger.rows import audit
from penstock.producers.gateway.auth import callers, jwks

PATH = "/v1/jobs/gateway.invoice"
ISSUER, AUDIENCE = "https://login.example.com", "penstock"


def ask(gateway: Gateway, headers: dict[str, str] | None = None, **options: str) -> Any:
    return gateway.client.post(PATH, json=INVOICE, params=options, headers=headers)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Basic dXNlcjpwYXNz",
        "Bearer psk_",
        "Bearer psk_0123456789ab_" + "x" * 43,
        "Bearer e30.e30.e30",
        "Bearer " + "x" * 5000,
    ],
)
def test_a_caller_without_a_key_is_refused(gateway: Gateway, header: str | None) -> None:
    answer = ask(gateway, None if header is None else {"Authorization": header})
    problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert gateway.sent("invoices") == []


def test_a_key_is_kept_as_a_hash(gateway: Gateway) -> None:
    text, key = api_keys.add(gateway.database, "test")
    rows = gateway.database.read(lambda connection: connection.exec_driver_sql("SELECT * FROM penstock_api_keys").all())
    assert text.rpartition("_")[2] not in str(rows)
    assert api_keys.find(gateway.database, text) == key
    assert api_keys.find(gateway.database, text[:-1] + ("A" if text[-1] != "A" else "B")) is None


def test_a_key_ends_when_it_expires(gateway: Gateway) -> None:
    past, future = (datetime.now(UTC) + timedelta(hours=hours) for hours in (-1, 1))
    problem(ask(gateway, gateway.key(expires_at=past)), 401, "unauthenticated")
    assert ask(gateway, gateway.key(expires_at=future)).status_code == 202


def test_a_revoked_key_ends_within_seconds(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    key = gateway.key()
    assert ask(gateway, key).status_code == 202
    api_keys.revoke(gateway.database, key["Authorization"].split("_")[1])
    monkeypatch.setattr(callers, "CACHE_SECONDS", 0.0)
    problem(ask(gateway, key), 401, "unauthenticated")


def test_requests_of_one_moment_read_their_key_once(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    header = gateway.key()["Authorization"]
    find, begun, may_end = api_keys.find, [], threading.Event()

    def held(database: Any, text: str) -> Any:
        begun.append(text)
        assert may_end.wait(WAIT_SECONDS)
        return find(database, text)

    monkeypatch.setattr(api_keys, "find", held)

    async def ask_together() -> list[Any]:
        fresh = callers.Callers(gateway.database, None)
        asking = [asyncio.create_task(fresh.authenticate(header)) for _ in range(20)]
        await until_async(lambda: begun)
        asking[0].cancel()  # its client has gone; the others still wait
        may_end.set()
        return await asyncio.gather(*asking, return_exceptions=True)

    first, *others = asyncio.run(ask_together())
    assert isinstance(first, asyncio.CancelledError)
    assert [caller.name for caller in others] == ["key test"] * 19
    assert len(begun) == 1


def test_a_kind_that_is_not_for_this_key_is_refused(gateway: Gateway) -> None:
    key = gateway.key(kinds=["gateway.s*", "report.build"])
    problem(ask(gateway, key), 403, "kind-not-allowed")
    problem(gateway.client.get("/v1/kinds/gateway.invoice", headers=key), 403, "kind-not-allowed")
    assert gateway.client.post("/v1/jobs/gateway.sync", json={"account": "a"}, headers=key).status_code == 202
    kinds = [kind["kind"] for kind in gateway.client.get("/v1/kinds", headers=key).json()["kinds"]]
    assert kinds == ["gateway.sync", "report.build"]


def test_a_queue_that_is_not_for_this_key_is_refused(gateway: Gateway) -> None:
    key = gateway.key(queues=["invoices"])
    assert ask(gateway, key).status_code == 202
    problem(ask(gateway, key, queue="syncs"), 403, "queue-not-allowed")


def test_a_tenant_that_is_not_for_this_key_is_refused(gateway: Gateway) -> None:
    problem(ask(gateway, gateway.key(tenants=["acme"]), tenant="other"), 403, "tenant-not-allowed")
    assert gateway.sent("invoices") == []


def test_a_key_for_one_tenant_sends_on_its_behalf(gateway: Gateway) -> None:
    assert ask(gateway, gateway.key(tenants=["acme"])).status_code == 202
    [sent] = gateway.sent("invoices")
    assert sent["penstock"]["tenant"] == "acme"


def test_a_key_for_several_tenants_must_name_one(gateway: Gateway) -> None:
    key = gateway.key(tenants=["acme", "other"])
    [error] = problem(ask(gateway, key), 422, "invalid-parameters")["errors"]
    assert error["parameter"] == "tenant"
    assert ask(gateway, key, tenant="other").status_code == 202


def test_a_key_may_ask_only_so_often(gateway: Gateway, open_gateway: Open) -> None:
    slow = gateway.key(requests_per_second=0.001)
    assert ask(gateway, slow).status_code == 202
    answer = ask(gateway, slow)
    problem(answer, 429, "rate-limited")
    assert 900 < int(answer.headers["retry-after"]) <= 1000
    assert ask(gateway, gateway.key()).status_code == 202
    limited = open_gateway(requests_per_second=0.001)
    key = gateway.key()
    assert [ask(limited, key).status_code for _ in range(2)] == [202, 429]


class Provider:
    """An identity provider: a key pair, and the place where it publishes one."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        numbers = self.key.public_key().public_numbers()
        x, y = (base64.urlsafe_b64encode(n.to_bytes(32, "big")).rstrip(b"=").decode() for n in (numbers.x, numbers.y))
        self.jwks = {"keys": [{"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": "one", "use": "sig"}]}
        self.asked = 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(provider.jwks).encode())

            def log_message(self, *_arguments: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"

    def token(self, key: Any = None, headers: dict[str, str] | None = None, **claims: Any) -> dict[str, str]:
        now = int(time.time())
        body = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": now + 600, "iat": now, "penstock": {}} | claims
        body = {name: value for name, value in body.items() if value is not None}
        text = jwt.encode(body, key or self.key, "ES256", headers or {"kid": "one"})
        return {"Authorization": f"Bearer {text}"}


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider()
    thread = threading.Thread(target=provider.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield provider
    provider.server.shutdown()
    provider.server.server_close()
    thread.join()


@pytest.fixture
def trusting(open_gateway: Open, provider: Provider) -> Gateway:
    return open_gateway(jwt={"jwks_url": provider.url, "issuer": ISSUER, "audience": AUDIENCE})


def test_a_token_of_the_provider_is_taken_with_its_scope(trusting: Gateway, provider: Provider) -> None:
    token = provider.token(penstock={"kinds": ["gateway.invoice"], "tenants": ["acme"]})
    answer = ask(trusting, token)
    assert answer.status_code == 202
    [sent] = trusting.sent("invoices")
    assert sent["penstock"]["tenant"] == "acme"
    assert trusting.client.get(answer.headers["location"], headers=provider.token()).status_code == 200
    problem(trusting.client.post("/v1/jobs/gateway.tree", json={}, headers=token), 403, "kind-not-allowed")
    assert ask(trusting, trusting.key()).status_code == 202, "keys are taken too"
    assert provider.asked == 1, "the provider's keys are kept"


def test_a_job_is_found_only_by_the_subject_that_sent_it(trusting: Gateway, provider: Provider) -> None:
    answer = ask(trusting, provider.token())
    other = provider.token(sub="eve")
    problem(trusting.client.get(answer.headers["location"], headers=other), 404, "job-not-found")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda provider: provider.token(exp=int(time.time()) - 3600),
        lambda provider: provider.token(aud="another"),
        lambda provider: provider.token(iss="https://evil.example.com"),
        lambda provider: provider.token(sub=None),
        lambda provider: provider.token(exp=None),
        lambda provider: provider.token(key=ec.generate_private_key(ec.SECP256R1())),
        lambda provider: provider.token(headers={"kid": "unknown"}),
        lambda provider: {
            "Authorization": "Bearer "
            + jwt.encode({"sub": "ada"}, "a shared secret of 32 bytes or so", "HS256", {"kid": "one"})
        },
        lambda provider: {"Authorization": "Bearer " + jwt.encode({"sub": "ada"}, None, "none", {"kid": "one"})},
        lambda provider: {"Authorization": "Bearer x.y.z"},
        lambda provider: {"Authorization": "Bearer x"},
    ],
)
def test_a_token_that_does_not_hold_is_refused(
    trusting: Gateway, provider: Provider, wrong: Callable[[Provider], dict[str, str]]
) -> None:
    problem(ask(trusting, wrong(provider)), 401, "invalid-token")


@pytest.mark.parametrize(
    "scope", [None, "all", ["gateway.invoice"], {"kinds": "gateway.invoice"}, {"tenants": [1]}, {"verbs": "read"}]
)
def test_a_token_without_a_scope_may_do_nothing(trusting: Gateway, provider: Provider, scope: Any) -> None:
    problem(ask(trusting, provider.token(penstock=scope)), 403, "no-scope")


@pytest.mark.parametrize("scope", [{"kind": ["gateway.invoice"]}, {"kinds": ["*"], "tenant": ["acme"]}, {"": None}])
def test_a_scope_with_unknown_members_is_refused_by_their_names(
    trusting: Gateway, provider: Provider, scope: Any
) -> None:
    refused = ask(trusting, provider.token(penstock=scope))
    problem(refused, 403, "no-scope")
    assert repr(list(scope)[-1]) in refused.json()["detail"]
    assert refused.json()["detail"].endswith("there are verbs, kinds, queues, tenants")


def test_a_token_of_the_provider_does_what_its_verbs_say(trusting: Gateway, provider: Provider) -> None:
    sent = ask(trusting, provider.token(penstock={"verbs": ["send"]}))
    assert sent.status_code == 202
    url = sent.headers["location"]
    problem(trusting.client.get(url, headers=provider.token(penstock={"verbs": ["send"]})), 403, "verb-not-allowed")
    assert trusting.client.get(url, headers=provider.token(penstock={"verbs": ["read"]})).status_code == 200
    assert trusting.client.get(url, headers=provider.token(penstock={})).status_code == 200
    problem(ask(trusting, provider.token(penstock={"verbs": []})), 403, "verb-not-allowed")
    cancel = f"{url}/cancel?kind=gateway.invoice"
    problem(trusting.client.post(cancel, headers=provider.token(penstock={"verbs": ["read"]})), 403, "verb-not-allowed")
    assert trusting.client.post(cancel, headers=provider.token(penstock={"verbs": ["cancel"]})).status_code == 200
    [act] = audit.find(trusting.database)
    assert (act.act, act.actor) == ("cancel", f"jwt:{ISSUER}:ada")


@pytest.mark.parametrize("verbs", [["delete"], ["read", "*"], ["READ"], ["x" * 5000]])
def test_a_claim_with_an_unknown_verb_is_refused_by_those_there_are(
    trusting: Gateway, provider: Provider, verbs: list[str]
) -> None:
    detail = problem(ask(trusting, provider.token(penstock={"verbs": verbs})), 403, "no-scope")["detail"]
    assert "verb must be one of read, send, cancel, retry, schedule, admin, not " in detail
    assert verbs[-1][:40] in detail
    assert len(detail) < 200


def rotate(provider: Provider) -> dict[str, str]:
    """The provider publishes another key; a token that names it."""
    provider.jwks["keys"].append({**provider.jwks["keys"][0], "kid": "two"})
    return provider.token(headers={"kid": "two"})


def test_a_token_with_a_key_that_the_provider_has_just_made_is_a_503(
    provider: Provider, open_gateway: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "COOLDOWN_SECONDS", 3600.0)
    gateway = open_gateway(jwt={"jwks_url": provider.url, "issuer": ISSUER, "audience": AUDIENCE})
    assert ask(gateway, provider.token()).status_code == 202
    refused = ask(gateway, rotate(provider))
    problem(refused, 503, "provider-unavailable")
    assert 0 < int(refused.headers["retry-after"]) <= 3600
    assert ask(gateway, provider.token()).status_code == 202, "others go on"
    without_key = {"Authorization": "Bearer " + jwt.encode({"sub": "ada"}, provider.key, "ES256")}
    other = jwt.encode({"sub": "ada"}, "a shared secret of 32 bytes or so", "HS256", {"kid": "two"})
    for wrong in (without_key, {"Authorization": f"Bearer {other}"}):
        problem(ask(gateway, wrong), 401, "invalid-token")
    assert provider.asked == 1


def test_a_new_key_of_the_provider_is_fetched_when_the_last_fetch_is_old_enough(
    provider: Provider, open_gateway: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "COOLDOWN_SECONDS", 0.0)
    gateway = open_gateway(jwt={"jwks_url": provider.url, "issuer": ISSUER, "audience": AUDIENCE})
    assert ask(gateway, provider.token()).status_code == 202
    assert ask(gateway, rotate(provider)).status_code == 202
    assert provider.asked == 2
    problem(ask(gateway, provider.token(headers={"kid": "three"})), 401, "invalid-token")
    assert provider.asked == 3


@pytest.mark.parametrize("jwks", [{"keys": []}, {"keys": [{"kty": "?", "kid": "one"}]}, [], "not JSON"])
def test_a_provider_without_keys_that_can_be_used_is_a_503(trusting: Gateway, provider: Provider, jwks: Any) -> None:
    provider.jwks = jwks
    problem(ask(trusting, provider.token()), 503, "provider-unavailable")


def test_an_empty_list_in_a_scope_allows_nothing(trusting: Gateway, provider: Provider) -> None:
    problem(ask(trusting, provider.token(penstock={"kinds": []})), 403, "kind-not-allowed")
    problem(ask(trusting, provider.token(penstock={"tenants": []})), 403, "tenant-not-allowed")


def test_an_unavailable_provider_is_a_503(open_gateway: Open, provider: Provider) -> None:
    unavailable = open_gateway(jwt={"jwks_url": "http://127.0.0.1:1/jwks.json", "issuer": ISSUER, "audience": AUDIENCE})
    problem(ask(unavailable, provider.token()), 503, "provider-unavailable")


def test_a_token_without_an_algorithm_is_refused(trusting: Gateway) -> None:
    header, claims = (base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (b'{"kid": "one"}', b"{}"))
    for signature in ("", "AAAA"):
        authorization = {"Authorization": f"Bearer {header}.{claims}.{signature}"}
        problem(ask(trusting, authorization), 401, "invalid-token")
