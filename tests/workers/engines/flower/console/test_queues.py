"""Queues, limits and pauses on the console, as an operator uses them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from served import Flower
from support.ledgers import Note
from support.polling import until

from penstock.ledger.members import controls, heartbeats
from penstock.ledger.rows import audit
from penstock.ledger.rows.rates.counting import Tally, this_minute
from penstock.ledger.sql.database import Database
from penstock.producers import Producer
from penstock.producers.limits.rules import Rule, share_of
from penstock.producers.limits.store import LimitStore, SlotRequest
from penstock.producers.senders.redis.connections import RedisConnections
from penstock.schemas import Concurrency, Rate
from penstock.workers.local.up.redis_server import RedisServer

HOUR = timedelta(hours=1)


def post(console: Flower, path: str, **body: Any) -> Any:
    return console.post(f"api/penstock/{path}", body=json.dumps(body).encode(), Content_Type="application/json")


def test_a_queue_is_paused_and_resumed_with_the_mouse(
    open_page: Callable[..., Any], ledger: Database, redis_server: RedisServer, prefix: str
) -> None:
    heartbeats.register(ledger, "celery@web-1", engine="celery", queues=["notes"], kinds={}, lease=HOUR)
    producer = Producer(redis_server.url, prefix=prefix)
    producer.enqueue_many([Note() for _ in range(7)])
    producer.close()
    page = open_page("queues")
    row = page.locator("tr", has=page.get_by_role("rowheader", name="notes", exact=True))
    assert "1 celery" in row.inner_text()
    row.get_by_text("Pause", exact=False).first.click()
    row.get_by_label("Reason").first.fill("<b>the printer</b> burns")
    row.get_by_role("button", name="Pause", exact=True).click()
    banner = page.locator(".console-banner")
    banner.wait_for()
    assert "Queue 'notes' is paused by op" in " ".join(banner.inner_text().split())
    assert "<b>the printer</b> burns" in banner.inner_text()
    [pause] = controls.in_force(ledger).pauses
    assert (pause.name, pause.actor, pause.reason) == ("notes", "op", "<b>the printer</b> burns")
    banner.get_by_role("button").click()
    banner.wait_for(state="detached")
    assert controls.in_force(ledger).pauses == ()
    assert [act.act for act in audit.find(ledger)] == ["resume", "pause"]


def test_acts_on_queues_and_kinds_by_json(console: Flower, ledger: Database) -> None:
    answer = post(console, "kinds/a.b/pause", minutes=5, reason="why")
    assert answer["message"].startswith("Paused: kind a.b until")
    [kind] = console.get("api/penstock/kinds?kind=a.b")["kinds"]
    assert (kind["kind"], kind["pause"]["by"], kind["pause"]["reason"]) == ("a.b", "op", "why")
    assert post(console, "queues/q/tune", concurrency=3, weight=2)["message"] == "Queue q: concurrency 3, weight 2"
    held = controls.in_force(ledger)
    assert (held.concurrency, held.weights) == ({"q": 3}, {"q": 2})
    [queue] = [row for row in console.get("api/penstock/queues")["queues"] if row["name"] == "q"]
    assert (queue["concurrency"], queue["weight"]) == (3, 2)
    assert post(console, "pause", reason="all")["message"] == "Paused: everything"
    assert post(console, "resume")["message"] == "Goes on: everything"
    assert post(console, "queues/dispatcher/pause") == 400
    assert post(console, "queues/q/pause", minutes=-1) == 400
    assert post(console, "queues/q/purge")["message"].startswith("0 jobs")
    assert post(console, "queues/q/move") == 400
    assert console.get("api/penstock/limits") == {"limits": [], "more": 0, "store": True}


def test_rates_in_and_out_of_a_queue(
    open_page: Callable[..., Any], console: Flower, ledger: Database, redis_server: RedisServer, prefix: str
) -> None:
    producer = Producer(redis_server.url, prefix=prefix)
    producer.enqueue(Note())

    def notes() -> Any:
        return next((row for row in console.get("api/penstock/queues")["queues"] if row["name"] == "notes"), None)

    until(lambda: notes() is not None, "the queue")
    assert notes()["in_per_minute"] is None, "one look says nothing of a rate"
    heartbeats.report(ledger, "w1", tallies={(this_minute(), ("ledger.note", "notes", "succeeded")): Tally(50)})
    producer.enqueue_many([Note() for _ in range(120)])
    producer.close()
    until(lambda: notes()["in_per_minute"] is not None, "ten seconds of looking")
    answer = console.get("api/penstock/queues")
    assert notes()["in_per_minute"] == pytest.approx(120 * 60 / answer["in_seconds"], rel=0.2)
    until(lambda: 10 <= notes()["out_per_minute"] <= 12.5, "50 of four to five minutes")
    text = " ".join(open_page("queues").locator("main, body").first.inner_text().split())
    assert "what the broker counts as added" in text


@pytest.fixture
def published(redis_server: RedisServer, prefix: str) -> Iterator[LimitStore]:
    """The store of limits with two that a worker has reported; a job holds a share of the first."""
    rules = [Rule("bank/concurrency-by-tenant", Concurrency(5, by="tenant")), Rule("bank/rate-60s", Rate(100, per=60))]
    store = LimitStore(RedisConnections(redis_server.url, timeout_seconds=10), prefix=prefix, lease=HOUR, worker="w1")
    held = SlotRequest("job-1", 1, ((rules[0], f"{rules[0].name}:{share_of('acme')}"),))
    store.renew(rules, [held])
    yield store
    store.close()


def test_a_limit_is_set_and_reset_by_json(
    start_console: Callable[..., Flower], ledger: Database, published: LimitStore
) -> None:
    console = start_console(FLOWER_BASIC_AUTH="look:secret", PENSTOCK_FLOWER_ADMINS='["op"]')
    concurrency, rate = "bank/concurrency-by-tenant", "bank/rate-60s"
    assert post(console, "limits/set", limit=rate, most=50, reason="why", minutes=5)["message"].endswith(": 50")
    console.send("limits/set", {"limit": concurrency, "most": 9, "share": "acme"})
    rows = {row["limit"]: row for row in console.get("api/penstock/limits")["limits"]}
    assert (rows[rate]["rule"], rows[rate]["change"]["value"]) == ("100 per 60 s", 50)
    assert (rows[rate]["change"]["by"], rows[rate]["change"]["reason"]) == ("op", "why")
    of_share = rows[concurrency]
    assert (of_share["share"], of_share["change"]["value"]) == (share_of("acme"), 9)
    assert (of_share["running"], of_share["change"]["of_share"]) == (["job-1"], True)
    for body, status in (
        ({"limit": "none", "most": 1}, 404),
        ({"limit": rate, "most": 1, "share": "acme"}, 404),
        ({"limit": rate, "most": 0}, 400),
        ({"limit": rate}, 400),
        ({"limit": rate, "most": 1, "until": "2020-01-01T00:00"}, 400),
    ):
        assert console.refusal("limits/set", body)[0] == status, body
    assert console.refusal("limits/set", {"limit": rate, "most": 1}, "look:secret")[0] == 403
    assert "limits/set" not in console.get("limits", "look:secret")
    assert console.send("limits/reset", {"limit": rate})["message"] == f"As declared: limit {rate}"
    assert console.send("limits/reset", {"limit": rate})["message"] == "It was not set"
    assert [(act.act, act.subject) for act in audit.find(ledger, subject=rate)] == [("reset", rate), ("limit", rate)]


def test_a_limit_is_set_for_a_share_and_reset_with_the_mouse(
    open_page: Callable[..., Any], ledger: Database, published: LimitStore
) -> None:
    page = open_page("limits", width=390)
    row = page.locator("tr", has=page.get_by_role("rowheader", name="bank/concurrency-by-tenant"))
    row.get_by_text("Set", exact=False).first.click()
    row.get_by_label("Number").fill("2")
    row.get_by_label("For").select_option(share_of("acme"))
    row.get_by_label("Reason").fill("<b>slow</b>")
    row.get_by_role("button", name="Set", exact=True).click()
    page.get_by_text("set to 2", exact=True).wait_for()
    assert "<b>slow</b>" in row.inner_text()
    [change] = controls.in_force(ledger).all
    assert (change.value, change.name) == (2, f"bank/concurrency-by-tenant:{share_of('acme')}")
    row.get_by_role("button", name="Reset").click()
    page.get_by_text("set to 2", exact=True).wait_for(state="detached")
    assert controls.in_force(ledger).limits == {}
