"""Limits whose numbers an operator changes while workers run: in the store, case by case, and with all at work."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from limit_site import Call, One, Rare, Site
from support.polling import until
from typer.testing import CliRunner
from workers.limits.clocked_store import INTERVAL, ONE, PACED, RULES, Clocked, entry

from penstock.config.errors import LimitNotFound
from penstock.ledger.members import controls
from penstock.ledger.rows.waits import limit_waits
from penstock.producers.explain import explain
from penstock.producers.limits.rules import Rule, share_of
from penstock.producers.limits.store import LEAD_SECONDS, SlotGrant, SlotRefusal
from penstock.schemas import Concurrency, Rate
from penstock.workers.cli import app
from penstock.workers.fleet.limits import reset_limit, set_limit, view_limits

LIMIT, RARE, BY_TENANT = "limits.one/concurrency", "limits.rare/rate-60s", "limits.call/concurrency-by-tenant"


def test_a_raised_number_is_free_at_once_and_a_lowered_one_admits_no_more(store: Clocked) -> None:
    rule, slot = ONE
    store.acquire([entry("first", ONE), entry("waits", ONE)])
    assert store.take_free(10) == []
    store.renew([rule], [entry("first", ONE)], {"one": 3})
    [free] = store.take_free(10)
    assert (free.slot, free.count) == (slot, 2)
    store.wake(free, ["waits"], more=False)
    raised = (rule.admitting(3), slot)
    assert store.acquire([entry("waits", raised)]) == [SlotGrant(0)]
    assert store.rules()["one"].most == 3
    store.renew([rule], [entry("first", ONE), entry("waits", ONE)])
    assert store.rules()["one"].most == 1
    store.release([entry("first", ONE)])
    assert store.acquire([entry("late", ONE)]) == [SlotRefusal(slot)], "one still runs"


def test_a_share_has_its_own_number(store: Clocked) -> None:
    rule = Rule("each", Concurrency(1, by="tenant"))
    shares = {name: f"each:{share_of(name)}" for name in ("acme", "other")}
    store.renew([rule], [])
    for name, slot in shares.items():
        store.acquire([entry(f"{name} runs", (rule, slot)), entry(f"{name} waits", (rule, slot))])
    assert store.take_free(10) == []
    store.renew([rule], [], {shares["acme"]: 5, "each:": 1, "two": 9})
    assert [(free.slot, free.count) for free in store.take_free(10)] == [(shares["acme"], 4)]
    published = store.rules()["each"]
    assert (published.most, published.of_share(share_of("acme")).most) == (1, 5)
    store.renew([rule], [])
    assert store.rules()["each"].shares == {}


def test_a_faster_rate_does_not_wait_for_the_time_of_the_slower_one(store: Clocked) -> None:
    rule, slot = PACED
    slow = (Rule("paced", Rate(1, per=1000)), slot)
    assert store.acquire([entry("first", slow), entry("waits", slow)]) == [SlotGrant(0), SlotRefusal(slot)]
    store.renew([slow[0]], [])
    assert store.take_free(10) == []
    store.renew([rule], [])
    assert store.take_free(10) == [], "it starts an interval later at the latest, by the new rate"
    store.after(INTERVAL + 3 * LEAD_SECONDS)
    [free] = store.take_free(10)
    store.wake(free, ["waits"], more=False)
    assert store.acquire([entry("waits", PACED)]) == [SlotGrant(0)]


def test_a_worker_that_publishes_the_same_numbers_wakes_no_one(store: Clocked) -> None:
    store.acquire([entry("first", ONE), entry("waits", ONE)])
    store.take_free(10)
    before = store._connections.execute(_wakes(store))
    store.renew([*RULES.values()], [entry("first", ONE)])
    assert store._connections.execute(_wakes(store)) == before


def _wakes(store: Clocked) -> bytes:
    from penstock.producers.senders.redis.protocol import pack

    return pack("ZRANGE", f"{store._base}:wakes", 0, -1, "WITHSCORES")


def test_all_workers_follow_a_number_that_is_set_and_reset_also_after_a_restart(site: Site) -> None:
    site.enqueue([One(n=n, until_go=True) for n in range(8)])
    until(lambda: site.book.now.get("one") == 1, "the first to run")
    until(lambda: limit_waits.counts(site.database).get(f"{LIMIT}:") == 7, "the others to wait")
    with pytest.raises(LimitNotFound, match=LIMIT):
        set_limit(site.database, site.store, "limits.none/concurrency", 3, actor="ada")
    set_limit(site.database, site.store, LIMIT, 3, actor="ada", reason="a faster printer")
    until(lambda: site.book.now["one"] == 3, "three to run")
    for worker in site.workers:
        worker.stop(0)
    site.workers.clear()
    site.book.now["one"] = site.book.most["one"] = 0  # those that were stopped come again, and the book counts no stops
    site.start(workers=2)
    until(lambda: site.book.now["one"] == 3, "three to run under the new workers")
    assert site.book.most["one"] == 3
    ended = reset_limit(site.database, site.store, LIMIT, actor="bob")
    assert ended is not None
    until(lambda: site.store.rules()[LIMIT].most == 1, "the declared number")
    site.book.most["one"] = 0
    site.book.go = True
    until(lambda: site.states() == {"succeeded": 8}, "the last outcome")
    site.book.most["one"] = 0
    site.enqueue([One(n=n, seconds=0.05) for n in range(4)])
    until(lambda: site.states() == {"succeeded": 12}, "four more")
    assert site.book.most["one"] == 1


def test_a_rate_is_faster_and_ends_by_itself(site: Site) -> None:
    site.enqueue([Rare() for _ in range(4)])
    until(lambda: len(site.book.started) == 1, "the first")
    set_limit(site.database, site.store, RARE, 600, actor="ada", until=timedelta(seconds=30))
    until(lambda: len(site.book.started) == 4, "all within a minute")
    change = controls.in_force(site.database).limit_of(f"{RARE}:")
    assert change is not None
    assert change.until is not None
    set_limit(site.database, site.store, RARE, 600, actor="ada", until=timedelta(seconds=0.5))
    until(lambda: site.store.rules()[RARE].interval == timedelta(minutes=1), "the declared rate")


def test_a_tenant_has_a_number_of_its_own(site: Site) -> None:
    site.enqueue([Call(n=n, until_go=True) for n in range(6)], tenant="acme")
    until(lambda: site.book.now.get("call") == 2, "two of acme")
    set_limit(site.database, site.store, BY_TENANT, 4, share="acme", actor="ada")
    until(lambda: site.book.now["call"] == 4, "four of acme")
    site.enqueue([Call(n=n, until_go=True) for n in range(3)], tenant="other")
    until(lambda: sum(limit_waits.counts(site.database).values()) == 3, "two of acme and one of another to wait")
    views = {view.share: view for view in view_limits(site.database, site.store) if view.limit == BY_TENANT}
    acme, other = views[share_of("acme")], views[share_of("other")]
    assert (len(acme.running), len(other.running), other.change) == (4, 2, None)
    assert acme.change is not None
    assert acme.change.name == f"{BY_TENANT}:{share_of('acme')}", "a hash: no name of a customer is on record"
    with pytest.raises(LimitNotFound, match="no shares"):
        set_limit(site.database, site.store, LIMIT, 4, share="acme", actor="ada")


def test_people_see_the_change_next_to_the_declared_rule(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("broker_url", "database_url", "prefix"):
        monkeypatch.setenv(f"PENSTOCK_{name.upper()}", str(getattr(site.settings, name)))
    site.enqueue([One(n=n, until_go=True) for n in range(3)])
    until(lambda: site.book.now.get("one") == 1, "the first to run")
    run = CliRunner().invoke
    result = run(app, ["limits", "set", LIMIT, "2", "--reason", "two printers", "--until", "2h", "--actor", "ada"])
    assert result.exit_code == 0, result.output
    until(lambda: site.book.now["one"] == 2, "two to run")
    until(lambda: limit_waits.counts(site.database).get(f"{LIMIT}:") == 1, "one to wait")
    [listed] = [row for row in json.loads(run(app, ["limits", "list", "--json"]).output) if row["limit"] == LIMIT]
    assert (listed["rule"], listed["set_to"], listed["change"]["reason"]) == ("1 at a time", 2, "two printers")
    assert json.loads(run(app, ["limits", "--json"]).output)
    waiting = next(handle.id for handle in site.handles if site.row(handle.id).state == "scheduled")
    explanation = explain(site.database, waiting, lease=site.settings.lease, limits=site.store)
    assert "2 of 2 running" in explanation.because
    assert "set to 2 in place of 1 at a time by ada until" in explanation.because
    assert "two printers" in explanation.because
    assert (explanation.facts["set_to"], explanation.facts["rule"]) == (2, "1 at a time")
    assert run(app, ["limits", "reset", LIMIT, "--actor", "ada"]).exit_code == 0
    again = run(app, ["limits", "reset", LIMIT, "--actor", "ada"])
    assert again.exit_code == 1
    assert "is not set" in again.output
    assert run(app, ["limits", "set", "none", "2"]).exit_code != 0
    assert run(app, ["limits", "set", LIMIT, "0"]).exit_code != 0
