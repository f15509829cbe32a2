"""Dead letters over HTTP: listed, counted, shown, replayed and discarded; and whose they are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.gateways import Gateway, Invoice, Open, problem
from support.ledgers import (
    claimed,
    end,
    letter_of,
    message,
    row_of,
    set_up,
    start_worker,
    stock_envelope,
    temporary_database,
)
from support.servers.shared import SERVERS, need

from penstock.config.errors import JobNotFound
from penstock.ledger.queries import dead_letters
from penstock.ledger.queries.dead_letters import Selection
from penstock.ledger.queries.scope import Scope
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters as table
from penstock.ledger.transitions import replay as replays
from penstock.ledger.transitions.bury import bury_message
from penstock.ledger.transitions.replay import discard
from penstock.schemas import Job, Outcome

PATH = "/v1/deadletters"


class Export(Job, kind="gateway.export", queue="exports"):
    name: str = "all"


def die(database: Database, job: Job, error: str = "ValueError: no 1", **options: Any) -> str:
    """The id of a job that is dead."""
    start_worker(database, "w1")
    sent = message(job, **options)
    end(database, claimed(database, sent), Outcome.DEAD, error=error, traceback="the trace", reason="failed")
    return sent.id


def invoice(number: int = 1) -> Invoice:
    return Invoice(number=number, to="ada@example.com", iban="DE02")  # type: ignore[call-arg]


def bury(database: Database, kind: str, reason: str = "unknown_kind", **fields: Any) -> str:
    """The id of a message that never became a job."""
    envelope = stock_envelope(kind, fields, queue="invoices")
    return bury_message(database, envelope, envelope.body, reason, "because")


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [letter["id"] for letter in answer.json()["dead_letters"]]


def post(gateway: Gateway, act: str, key: dict[str, str], **body: Any) -> Any:
    return gateway.client.post(f"{PATH}/{act}", json=body, headers=key)


def test_dead_letters_are_listed_by_filter_page_by_page(gateway: Gateway) -> None:
    key = gateway.key()
    dead = [die(gateway.database, invoice(number), tenant="acme", key=f"i{number}") for number in range(3)]
    export = die(gateway.database, Export(), "KeyError: 'x'")
    get = gateway.client.get
    assert ids(get(PATH, headers=key)) == [export, *reversed(dead)]
    assert ids(get(PATH, params={"limit": 2}, headers=key)) == [export, dead[2]]
    assert ids(get(PATH, params={"limit": 2, "before": dead[2]}, headers=key)) == [dead[1], dead[0]]
    assert ids(get(PATH, params={"kind": "gateway.export"}, headers=key)) == [export]
    assert ids(get(PATH, params={"queue": "invoices", "error": "NO 1", "since": "1h"}, headers=key)) == dead[::-1]
    assert ids(get(PATH, params={"tenant": "acme", "key": "i1"}, headers=key)) == [dead[1]]
    assert ids(get(PATH, params={"until": "2026-01-01T00:00Z"}, headers=key)) == []
    assert ids(get(PATH, params={"decided": "replayed"}, headers=key)) == []
    [letter] = get(PATH, params={"key": "i1"}, headers=key).json()["dead_letters"]
    assert (letter["detail"], letter["tenant"], letter["key"], letter["unread"]) == (
        "ValueError: no 1",
        "acme",
        "i1",
        False,
    )
    [error] = problem(get(PATH, params={"before": "none"}, headers=key), 422, "invalid-parameters")["errors"]
    assert error["parameter"] == "before"


@pytest.mark.parametrize(
    ("wrong", "part"),
    [({"since": "yesterday"}, "since"), ({"until": "2026-03-01"}, "until"), ({"limit": 0}, "limit"), ({"x": 1}, "x")],
)
def test_a_wrong_parameter_is_named(gateway: Gateway, wrong: dict[str, Any], part: str) -> None:
    for path in (PATH, f"{PATH}/groups"):
        [error] = problem(gateway.client.get(path, params=wrong, headers=gateway.key()), 422, "invalid-request")[
            "errors"
        ]
        assert error["parameter"] == part


def test_dead_letters_are_counted_by_their_error(gateway: Gateway) -> None:
    same = [die(gateway.database, invoice(), f"ValueError: no {number}") for number in range(3)]
    other = die(gateway.database, Export(), "KeyError: 'x'")
    groups = gateway.client.get(f"{PATH}/groups", headers=gateway.key()).json()["groups"]
    assert [(group["count"], group["newest_id"]) for group in groups] == [(3, same[-1]), (1, other)]
    fingerprint = groups[0]["fingerprint"]
    assert set(ids(gateway.client.get(PATH, params={"group": fingerprint}, headers=gateway.key()))) == set(same)


def test_a_dead_letter_is_shown_without_what_is_sensitive(gateway: Gateway) -> None:
    key = gateway.key()
    letter = gateway.client.get(f"{PATH}/{die(gateway.database, invoice(7))}", headers=key).json()
    assert letter["payload"] == {"number": 7, "to": "ada@example.com", "lines": [], "iban": "***"}
    assert [(attempt["number"], attempt["outcome"]) for attempt in letter["attempts"]] == [(1, "dead")]
    unread = gateway.client.get(f"{PATH}/{bury(gateway.database, 'who.knows', token='s3cret')}", headers=key)
    assert unread.json()["payload"] == {"token": "***"}
    problem(gateway.client.get(f"{PATH}/none", headers=key), 404, "dead-letter-not-found")


def test_dead_letters_are_replayed_by_id_group_or_filter(gateway: Gateway) -> None:
    key = gateway.key()
    dead = [die(gateway.database, invoice(number)) for number in range(4)]
    group = letter_of(gateway.database, dead[0]).fingerprint
    dry = post(gateway, "replay", key, ids=[dead[0]], dry_run=True).json()
    assert (dry["dry_run"], dry["replayed"], dry["dead_letters"][0]["id"]) == (True, 1, dead[0])
    assert row_of(gateway.database, dead[0]).state == "dead"
    answer = post(gateway, "replay", key, ids=[dead[0]])
    assert answer.json()["replayed"] == 1
    assert row_of(gateway.database, dead[0]).state == "scheduled"
    [act] = audit.find(gateway.database, subject=dead[0])
    assert (act.act, act.actor) == ("replay", "key test")
    limited = post(gateway, "replay", key, filter={"group": group}, limit=2, throttle="60/m").json()
    assert [letter["id"] for letter in limited["dead_letters"]] == dead[1:3], "the oldest first"
    first, second = (row_of(gateway.database, job_id).due_at for job_id in dead[1:3])
    assert second - first == timedelta(seconds=1)
    assert post(gateway, "replay", key, filter={"queue": "invoices"}).json()["replayed"] == 1
    assert post(gateway, "replay", key, all=True).json() == {
        "dry_run": False,
        "replayed": 0,
        "refused": 0,
        "dead_letters": [],
    }


def test_what_cannot_be_replayed_is_told_for_each(gateway: Gateway) -> None:
    dead, unread = die(gateway.database, invoice()), bury(gateway.database, "who.knows")
    answer = post(gateway, "replay", gateway.key(), ids=[unread, dead, "none"])
    assert answer.status_code == 207
    body = answer.json()
    assert (body["replayed"], body["refused"]) == (1, 2)
    refused, replayed, missing = body["dead_letters"]
    assert (refused["problem"]["status"], refused["problem"]["type"]) == (409, "urn:penstock:problem:wrong-state")
    assert "--import" in refused["problem"]["detail"]
    assert "problem" not in replayed
    assert missing["problem"]["type"] == "urn:penstock:problem:dead-letter-not-found"


def test_an_edited_payload_is_checked_by_its_kind(gateway: Gateway) -> None:
    key, dead = gateway.key(), [die(gateway.database, invoice(number)) for number in range(2)]
    wrong = post(gateway, "replay", key, ids=[dead[0]], edit={"number": "many"})
    [error] = problem(wrong, 422, "invalid-fields")["errors"]
    assert error["pointer"] == "#/edit"
    assert "many" not in wrong.text
    several = post(gateway, "replay", key, ids=dead, edit={"number": 3})
    assert "one dead letter or one group" in problem(several, 422, "invalid-fields")["errors"][0]["detail"]
    assert post(gateway, "replay", key, ids=[dead[0]], edit={"number": 3}).json()["replayed"] == 1
    assert '"number":3' in row_of(gateway.database, dead[0]).payload
    [act] = audit.find(gateway.database, subject=dead[0])
    assert (act.act, act.detail) == ("edit", {"edited": ["number"]})


def test_dead_letters_are_discarded_with_a_reason(gateway: Gateway) -> None:
    key, dead = gateway.key(), die(gateway.database, invoice())
    for reason in ({}, {"reason": " "}):
        [error] = problem(post(gateway, "discard", key, ids=[dead], **reason), 422, "invalid-fields")["errors"]
        assert error["pointer"] == "#/reason"
    assert post(gateway, "discard", key, ids=[dead], reason="left", dry_run=True).json()["discarded"] == 1
    assert letter_of(gateway.database, dead).discarded_at is None
    assert post(gateway, "discard", key, ids=[dead], reason="left").json()["discarded"] == 1
    assert letter_of(gateway.database, dead).discarded_at is not None
    [act] = audit.find(gateway.database, subject=dead)
    assert (act.act, act.detail["why"]) == ("discard", "left")
    again = post(gateway, "discard", key, ids=[dead], reason="left")
    assert (again.status_code, again.json()["dead_letters"][0]["problem"]["status"]) == (207, 409)


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"filter": {}},
        {"filter": {"kind": None}},
        {"ids": []},
        {"ids": ["a"], "all": True},
        {"ids": ["a"], "filter": {"kind": "x"}},
        {"filter": {"kinds": "x"}},
        {"all": 1},
        {"all": True, "limit": 0},
        {"all": True, "throttle": "fast"},
        {"all": True, "edit": {}},
    ],
)
def test_a_choice_that_is_not_clear_decides_about_nothing(gateway: Gateway, choice: dict[str, Any]) -> None:
    dead = die(gateway.database, invoice())
    errors = problem(post(gateway, "replay", gateway.key(), **choice), 422, "invalid-fields")["errors"]
    assert errors
    assert row_of(gateway.database, dead).state == "dead"
    if choice in ({}, {"filter": {}}):
        assert "give the ids of dead letters, or a filter" in errors[0]["detail"]


def test_a_request_names_at_most_a_batch(gateway: Gateway, open_gateway: Open) -> None:
    small = open_gateway(max_batch=2)
    dead = [die(gateway.database, invoice(number)) for number in range(3)]
    key = gateway.key()
    assert problem(post(small, "replay", key, ids=dead), 422, "invalid-fields")["errors"][0]["pointer"] == "#/ids"
    wrong = post(small, "replay", key, all=True, limit=3)
    assert problem(wrong, 422, "invalid-fields")["errors"][0]["pointer"] == "#/limit"
    assert [post(small, "replay", key, all=True).json()["replayed"] for _ in range(3)] == [2, 1, 0]


@pytest.mark.parametrize(
    "scope",
    [{"kinds": ["gateway.e*"]}, {"queues": ["exports"]}, {"tenants": ["acme"]}],
    ids=["kinds", "queues", "tenants"],
)
def test_a_bound_key_sees_and_decides_only_about_its_own(gateway: Gateway, scope: dict[str, Any]) -> None:
    key = gateway.key(**scope)
    foreign = [die(gateway.database, invoice(number), tenant="other") for number in range(3)]
    own = [die(gateway.database, Export(), tenant="acme") for _ in range(2)]
    unread = bury(gateway.database, "who.knows")
    assert ids(gateway.client.get(PATH, headers=key)) == own[::-1]
    assert ids(gateway.client.get(PATH, params={"limit": 1, "before": own[1]}, headers=key)) == [own[0]]
    assert ids(gateway.client.get(PATH, params={"tenant": "other"}, headers=key)) == []
    groups = gateway.client.get(f"{PATH}/groups", headers=key).json()["groups"]
    assert [(group["kind"], group["count"]) for group in groups] == [("gateway.export", 2)]
    assert gateway.client.get(f"{PATH}/{own[0]}", headers=key).status_code == 200
    for other in (foreign[0], unread):
        missing = problem(gateway.client.get(f"{PATH}/none", headers=key), 404, "dead-letter-not-found")
        assert gateway.client.get(f"{PATH}/{other}", headers=key).json() == missing
        problem(gateway.client.get(PATH, params={"before": other}, headers=key), 422, "invalid-parameters")
    for act, options in (("replay", {}), ("discard", {"reason": "x"})):
        for choice in ({"ids": [*foreign, unread]}, {"filter": {"queue": "invoices"}}):
            body = post(gateway, act, key, **choice, **options).json()
            assert {letter["problem"]["status"] for letter in body["dead_letters"]} <= {404}
            assert {letter.get("kind") for letter in body["dead_letters"]} <= {None}
    assert {row_of(gateway.database, job_id).state for job_id in foreign} == {"dead"}
    assert letter_of(gateway.database, unread).discarded_at is None
    body = post(gateway, "replay", key, ids=[foreign[0], own[0]]).json()
    assert [letter.get("problem", {}).get("status") for letter in body["dead_letters"]] == [404, None]
    assert post(gateway, "replay", key, all=True).json()["replayed"] == 1
    assert audit.find(gateway.database, subject=foreign[0]) == []


def test_messages_of_unknown_kinds_are_for_keys_without_kinds(gateway: Gateway) -> None:
    unknown, bill = bury(gateway.database, "gateway.new"), bury(gateway.database, "gateway.bill", "invalid_payload")
    get = gateway.client.get
    assert set(ids(get(PATH, headers=gateway.key(queues=["invoices"])))) == {unknown, bill}
    assert ids(get(PATH, headers=gateway.key(kinds=["gateway.*"]))) == [bill]
    assert ids(get(PATH, headers=gateway.key(kinds=["gateway.invoice"]))) == [bill], "by the name of now"
    assert ids(get(PATH, headers=gateway.key(kinds=["gateway.bill"]))) == []


def test_a_job_whose_message_nobody_can_read_is_not_retried(gateway: Gateway) -> None:
    unread = bury(gateway.database, "who.knows")
    answer = gateway.client.post(f"/v1/jobs/{unread}/retry", headers=gateway.key())
    detail = problem(answer, 409, "wrong-state")["detail"]
    assert "cannot be replayed yet: unknown_kind" in detail
    assert "--import" in detail
    assert row_of(gateway.database, unread).state == "dead"
    assert letter_of(gateway.database, unread).replayed_at is None


@pytest.fixture(params=["SQLite", "PostgreSQL", "MariaDB"])
def database(request: pytest.FixtureRequest, sqlite_url: str) -> Iterator[Database]:
    if request.param == "SQLite":
        opened = Database(set_up(sqlite_url))
        yield opened
        opened.close()
        return
    need(request.param)
    with temporary_database(SERVERS[request.param]) as url:
        opened = Database(set_up(url))
        yield opened
        opened.close()


def test_a_scope_is_exact_on_every_database(database: Database) -> None:
    ids = [die(database, Export(name=str(number)), f"ValueError: no {number}", tenant="acme") for number in range(5)]
    for tenant in ("ACME", "acme ", "other", None):
        die(database, Export(), tenant=tenant)
    bury(database, "gateway.export")
    selection = Selection(scope=Scope(kinds=("gateway.[e]*",), queues=("exports",), tenants=("acme",)))
    first = dead_letters.find(database, selection, limit=3)
    rest = dead_letters.find(database, selection, before=first[-1].id, limit=3)
    assert [row.id for row in (*first, *rest)] == ids[::-1]
    [group] = dead_letters.groups(database, selection)
    assert (group.count, group.newest_id) == (5, ids[-1])
    with pytest.raises(JobNotFound):
        dead_letters.show(database, ids[0], scope=Scope(tenants=("ACME",)))
    verdicts = replays.replay(database, selection, actor="ada", limit=2)
    assert [verdict.id for verdict in verdicts] == ids[:2]
    verdicts = discard(database, selection, actor="ada", reason="no")
    assert [verdict.id for verdict in verdicts] == ids[2:]
    open_ = sa.select(sa.func.count()).where(table.c.replayed_at.is_(None), table.c.discarded_at.is_(None))
    assert database.read(lambda connection: connection.execute(open_).scalar()) == 5
