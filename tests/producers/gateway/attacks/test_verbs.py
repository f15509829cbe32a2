"""Verbs: each route demands one, and a key, a JWT or a token does nothing that its verbs do not say."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import APIRouter
from support.gateways import INVOICE, SECRET, Gateway, Invoice, problem
from support.ledgers import claimed, end, message, row_of, start_worker
from support.workflows import jobs as acme
from support.workflows.drive import start
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from penstock.config.errors import ConfigError, InvalidToken
from penstock.ledger.members import api_keys
from penstock.ledger.rows import audit
from penstock.ledger.schedules import commands as schedules
from penstock.ledger.sql.tables import api_keys as key_table
from penstock.producers.gateway import Authenticated, create_app
from penstock.producers.gateway.auth.verbs import PUBLIC, ROUTES
from penstock.producers.tokens import progress_token, read_progress_token, read_token
from penstock.schemas import Outcome
from penstock.schemas.verbs import Verb
from penstock.schemas.wire.ids import new_id

SAMPLES = {"{kind}": "gateway.invoice", "{name}": "nightly", "{step}": "approval"}
DEMANDED = [(*route, verb) for route, verb in ROUTES.items() if verb is not None and not route[1].endswith("/ws")]


def filled(path: str, job_id: str) -> str:
    for name, value in {**SAMPLES, "{id}": job_id}.items():
        path = path.replace(name, value)
    return path


def ask(gateway: Gateway, method: str, path: str, headers: dict[str, str] | None, **options: Any) -> Any:
    return gateway.client.request(method, path, headers=headers, **options)


def recorded(gateway: Gateway, **options: Any) -> str:
    """The id of a job that runs."""
    start_worker(gateway.database, "w1")
    sent = message(Invoice(**INVOICE), **options)
    claimed(gateway.database, sent)
    return sent.id


def dead(gateway: Gateway, **options: Any) -> str:
    start_worker(gateway.database, "w1")
    sent = message(Invoice(**INVOICE), **options)
    end(gateway.database, claimed(gateway.database, sent), Outcome.DEAD, error="ValueError: no", reason="failed")
    return sent.id


# The table.


def routes_of(routes: Iterable[Any]) -> set[tuple[str, str]]:
    """Method and path of each route, those of included routers among them."""
    pairs: set[tuple[str, str]] = set()
    for route in routes:
        if (router := getattr(route, "original_router", None)) is not None:
            pairs |= routes_of(router.routes)
        else:
            pairs |= {(method, route.path) for method in (getattr(route, "methods", None) or {"GET"}) - {"HEAD"}}
    return pairs


def test_each_route_has_a_verb_or_is_public(gateway: Gateway) -> None:
    assert routes_of(create_app(gateway.settings).routes) == set(ROUTES)


@pytest.mark.parametrize(("method", "path", "verb"), DEMANDED, ids=[f"{method} {path}" for method, path, _ in DEMANDED])
def test_a_route_demands_exactly_its_verb(gateway: Gateway, method: str, path: str, verb: Verb) -> None:
    where = filled(path, new_id())
    problem(ask(gateway, method, where, None), 401, "unauthenticated")
    others = gateway.key(kinds=["*"], verbs=[other for other in Verb if other != verb])
    refused = problem(ask(gateway, method, where, others), 403, "verb-not-allowed")
    assert refused["detail"].startswith(f"this key may not {verb}; its verbs: ")
    for key in (gateway.key(verbs=[verb]), gateway.key()):
        assert "verb-not-allowed" not in ask(gateway, method, where, key).text


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[4] / "docs/gateway.md").read_text()
    rows = re.findall(
        r"^\| (?:`(\w+)`|public) \| (.*`(?:GET|POST|DELETE) .*) \|$", page.partition("### Verbs")[2], re.MULTILINE
    )
    on_page = {
        (method, path): Verb(verb) if verb else PUBLIC
        for verb, routes in rows
        for method, path in re.findall(r"`(GET|POST|DELETE) (\S+)`", routes)
    }
    assert on_page == ROUTES


def test_a_public_route_needs_no_key(gateway: Gateway) -> None:
    for (method, path), verb in ROUTES.items():
        if verb is PUBLIC:
            assert ask(gateway, method, filled(path, "x"), None).status_code in (200, 404), path


def test_a_websocket_demands_read(gateway: Gateway) -> None:
    url = f"ws://127.0.0.1:{gateway.port}/v1/jobs/{recorded(gateway)}/ws"
    with pytest.raises(InvalidStatus) as refused:
        connect(url, additional_headers=gateway.key(verbs=["send", "admin"]))
    assert refused.value.response.status_code == 403
    assert b"verb-not-allowed" in (refused.value.response.body or b"")
    with connect(url, additional_headers=gateway.key(verbs=["read"])) as websocket:
        assert websocket.recv(60)


def test_the_document_shows_the_verb_of_each_operation(gateway: Gateway) -> None:
    document = gateway.client.get("/openapi.json", headers=gateway.key()).json()
    verbs = {
        (method.upper(), "/v1/jobs/{kind}" if operation["operationId"].startswith("submit.") else path): operation.get(
            "security"
        )
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    hidden = {("GET", "/openapi.json"), ("GET", "/v1/jobs/{id}/ws")}
    assert verbs == {
        route: None if verb is None else [{"bearer": [verb]}] for route, verb in ROUTES.items() if route not in hidden
    }


def test_a_route_of_another_module_demands_admin_until_the_table_has_it(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = APIRouter()

    @router.get("/v1/mine")
    async def mine(caller: Authenticated) -> dict[str, str]:
        return {"caller": caller.name}

    app = create_app(gateway.settings)
    app.include_router(router)
    read, admin = gateway.key(verbs=["read"]), gateway.key(verbs=["admin"])

    async def statuses() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as http,
        ):
            return [(await http.get("/v1/mine", headers=key)).status_code for key in (read, admin, gateway.key())]

    assert asyncio.run(statuses()) == [403, 200, 200]
    monkeypatch.setitem(ROUTES, ("GET", "/v1/mine"), Verb.READ)
    assert asyncio.run(statuses()) == [200, 403, 200]


# Keys.


def test_a_key_that_may_read_cannot_act(gateway: Gateway) -> None:
    key, runs, died = gateway.key(verbs=["read"], kinds=["*"]), recorded(gateway), dead(gateway)
    schedules.add(gateway.database, "nightly", {"kind": "gateway.tree", "cron": "0 3 * * *"}, actor="ada")
    before = [act.id for act in audit.find(gateway.database)]
    for method, path, body in (
        ("POST", f"/v1/jobs/{runs}/cancel", None),
        ("POST", f"/v1/jobs/{died}/retry", None),
        ("POST", "/v1/jobs/gateway.invoice", INVOICE),
        ("POST", "/v1/jobs", {"jobs": [{"kind": "gateway.invoice", "payload": INVOICE}]}),
        ("POST", "/v1/deadletters/replay", {"all": True}),
        ("POST", "/v1/deadletters/discard", {"all": True, "reason": "x"}),
        ("POST", "/v1/schedules/nightly/run", None),
        ("POST", "/v1/schedules/nightly/pause", None),
        ("DELETE", "/v1/schedules/nightly", None),
    ):
        problem(ask(gateway, method, path, key, json=body), 403, "verb-not-allowed")
    assert not row_of(gateway.database, runs).cancel_requested
    assert row_of(gateway.database, died).state == "dead"
    assert gateway.sent("invoices") == []
    assert [act.id for act in audit.find(gateway.database)] == before
    assert ask(gateway, "GET", f"/v1/jobs/{runs}", key).json()["state"] == "running"


def test_a_key_that_may_send_reads_nothing(gateway: Gateway) -> None:
    key = gateway.key(verbs=["send"])
    sent = gateway.client.post("/v1/jobs/gateway.invoice", json=INVOICE, headers=key)
    assert sent.status_code == 202
    for job_id in (sent.json()["id"], recorded(gateway)):
        for path in ("", "/events", "/explain"):
            problem(ask(gateway, "GET", f"/v1/jobs/{job_id}{path}", key), 403, "verb-not-allowed")
    problem(ask(gateway, "GET", "/v1/deadletters", key), 403, "verb-not-allowed")


def test_answers_of_acts_show_nothing_that_read_would(gateway: Gateway) -> None:
    key = gateway.key(verbs=["cancel", "schedule"])
    workflow_id = start(gateway.database, acme.Trip())
    answer = ask(gateway, "POST", f"/v1/workflows/{workflow_id}/cancel", key).json()
    assert (answer["id"], answer["steps"], answer["error"]) == (workflow_id, [], None)
    values = {"kind": "gateway.tree", "cron": "0 3 * * *", "payload": {"data": "private"}}
    schedules.add(gateway.database, "nightly", values, actor="ada")
    paused = ask(gateway, "POST", "/v1/schedules/nightly/pause", key)
    assert (paused.json()["state"], "private" in paused.text) == ("paused", False)


def test_a_key_that_was_made_before_there_were_verbs_may_do_all(gateway: Gateway) -> None:
    key, runs = gateway.key(), recorded(gateway)
    with_verbs = key_table.c.verbs.is_not(None)
    assert not gateway.database.read(
        lambda connection: connection.execute(sa.select(key_table).where(with_verbs)).all()
    )
    assert ask(gateway, "POST", f"/v1/jobs/{runs}/cancel", key).status_code == 200


def test_verbs_of_a_key_are_those_that_exist(gateway: Gateway) -> None:
    with pytest.raises(ConfigError, match="one of read, send, cancel, retry, schedule, admin, not 'delete'"):
        api_keys.add(gateway.database, "test", verbs=["read", "delete"])
    text, key = api_keys.add(gateway.database, "test", verbs=["send", "read", "send"])
    assert key.verbs == (Verb.READ, Verb.SEND)
    change = sa.update(key_table).values(verbs='["purge", "read"]')  # as a later version may write them
    gateway.database.write(lambda connection: connection.execute(change))
    later = api_keys.find(gateway.database, text)
    assert later is not None
    assert later.verbs == (Verb.READ,)


# Tokens of web backends.


def test_a_token_follows_its_own_job_only(gateway: Gateway) -> None:
    own, other = recorded(gateway), recorded(gateway)
    token = {"token": progress_token(own, secret=SECRET, verbs=["read", "cancel"])}
    problem(gateway.client.get(f"/v1/jobs/{other}/events", params=token), 403, "token-not-allowed")
    problem(gateway.client.post(f"/v1/jobs/{other}/cancel", params=token), 403, "token-not-allowed")
    assert not row_of(gateway.database, other).cancel_requested
    for path in ("", "/explain"):
        problem(gateway.client.get(f"/v1/jobs/{own}{path}", params=token), 401, "unauthenticated")
    problem(gateway.client.post(f"/v1/jobs/{own}/retry", params=token), 401, "unauthenticated")
    bearer = {"Authorization": f"Bearer {token['token']}"}
    problem(gateway.client.get("/v1/jobs/" + own, headers=bearer), 401, "unauthenticated")


def test_a_token_cancels_only_if_it_says_so(gateway: Gateway) -> None:
    job_id = recorded(gateway)
    path = f"/v1/jobs/{job_id}/cancel"
    problem(gateway.client.post(path), 401, "unauthenticated")
    follows, cancels = ({"token": progress_token(job_id, secret=SECRET, verbs=[verb])} for verb in ("read", "cancel"))
    problem(gateway.client.post(path, params=follows), 403, "token-not-allowed")
    problem(gateway.client.post(path, params={"token": follows["token"] + "x"}), 401, "invalid-token")
    assert not row_of(gateway.database, job_id).cancel_requested
    problem(gateway.client.get(f"/v1/jobs/{job_id}/events", params=cancels), 403, "token-not-allowed")
    assert gateway.client.post(path, params=cancels).json() == {"id": job_id, "state": "running"}
    [act] = audit.find(gateway.database, subject=job_id)
    assert (act.act, act.actor) == ("cancel", f"token of job {job_id}")


def test_a_token_carries_only_what_concerns_its_job() -> None:
    for wrong in (["admin"], ["read", "send"], ["everything"], []):
        with pytest.raises(ValueError, match="read"):
            progress_token("a", secret=SECRET, verbs=wrong)
    assert read_token(progress_token("a", secret=SECRET), secret=SECRET).verbs == (Verb.READ,)
    later = progress_token("a", secret=SECRET, expires_in=timedelta(minutes=5), verbs=["cancel"])
    contents = read_token(later, secret=SECRET)
    assert contents.verbs == (Verb.CANCEL,)
    assert contents.expires_at > datetime.now(UTC).timestamp()
    with pytest.raises(InvalidToken, match="not for following"):
        read_progress_token(later, secret=SECRET)
