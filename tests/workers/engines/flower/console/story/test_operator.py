"""An operator's day in the console, over workers, a dispatcher and a broker that are real."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from shop_jobs import REPORT_SECONDS, Charge, Letter, Order, Parcel, Report
from shop_site import PASSWORD, Person, Shop
from support.polling import until

from penstock.ledger.members import controls
from penstock.ledger.rows import audit
from penstock.producers import JobHandle
from penstock.schemas import State

MANY = 500
PER_SECOND = 200
PARCELS = 40


@pytest.mark.timeout(600)
@pytest.mark.parametrize("shop", [("celery", "redis"), ("dramatiq", "rabbitmq")], indirect=True, ids="-".join)
def test_the_day_of_an_operator(shop: Shop, open_page: Callable[..., Any]) -> None:
    shop.start_worker_of("shop")
    refused = shop.producer.enqueue_many([Charge(customer=f"c{number}", amount=-number) for number in range(MANY)])
    order = shop.producer.enqueue(Order(printer=str(shop.folder / "printer")))
    person = Person(open_page("/", login=f"otto:{PASSWORD}"))
    find_why_a_job_waits(shop, person)
    pause_deploy_and_resume(shop, person)
    replay_dead_letters(shop, person, refused)
    cancel_what_a_tenant_waits_for(shop, person)
    retry_a_step(shop, person, order)
    find_the_slowest_kind(shop, person)
    look_at_the_audit_log(shop, person)


def find_why_a_job_waits(shop: Shop, person: Person) -> None:
    report = shop.producer.enqueue(Report(day=1), key="report-of-monday")
    person.sees("no live worker")
    person.sees("reports")
    person.search("report-of-monday")
    person.page.get_by_role("heading", name="Why it is queued").wait_for()
    person.sees("no live worker consumes queue 'reports'")
    person.sees("start one: penstock worker --queues reports")
    assert report.status().state is State.QUEUED
    shop.start_worker_of("reports")
    person.page.get_by_role("heading", name="What became of it").wait_for()
    assert report.status().state is State.SUCCEEDED
    assert shop.acts() == [], "looking is not an act"


def pause_deploy_and_resume(shop: Shop, person: Person) -> None:
    [before] = [each.member for each in shop.live_workers() if "shop" in each.member.queues]
    process = next(process for process in shop.processes if process.pid == before.pid)
    person.go("Queues")
    assert person.page.get_by_text("Pause everything").count() == 0, "that is for an admin"
    person.pause("shop", "deploy of version 2")
    [pause] = controls.in_force(shop.database).pauses
    assert (pause.scope, pause.name, pause.actor, pause.reason) == ("queue", "shop", "otto", "deploy of version 2")
    shop.wait_for_beats()
    parcels = shop.producer.enqueue_many([Parcel(number=number) for number in range(PARCELS)])

    person.go("Workers")
    worker = person.page.locator("tr", has_text=before.name)
    worker.get_by_role("button", name="Drain").click()
    person.agree()
    until(lambda: process.poll() is not None, "the end of the worker", unless=lambda: None)
    worker.get_by_text("stopped", exact=True).wait_for()
    shop.start_worker_of("shop")
    until(lambda: any("shop" in each.member.queues for each in shop.live_workers()), "the next worker")
    [after] = [each.member for each in shop.live_workers() if "shop" in each.member.queues]
    person.page.locator("tr", has_text=after.name).get_by_text("running", exact=True).wait_for()

    shop.wait_for_beats()
    assert not [each for each in shop.rows("shop.parcel") if each.attempt], "the pause holds over the restart"
    person.go("Queues")
    until(lambda: str(PARCELS) in person.row("shop").inner_text().split(), "the parcels that wait")
    person.resume("deploy of version 2")
    until(lambda: shop.states("shop.parcel") == {"succeeded": PARCELS}, "the parcels")
    assert {(each.attempt, each.worker) for each in shop.rows("shop.parcel")} == {(1, after.name)}
    assert len(parcels) == PARCELS
    assert shop.acts() == [
        ("otto", "pause", "queue", "shop", 1),
        ("otto", "drain", "worker", before.name, 1),
        ("otto", "resume", "queue", "shop", 1),
    ]


def replay_dead_letters(shop: Shop, person: Person, refused: list[JobHandle]) -> None:
    until(lambda: shop.states("shop.charge") == {"dead": MANY}, "the dead letters")
    person.go("Dead letters")
    person.page.get_by_role("link", name="the card was refused").click()
    person.sees(f"{MANY} wait for a decision")
    form = person.page.locator("form", has=person.page.get_by_role("heading", name="Replay"))
    form.get_by_label("Fields to change").fill('{"amount": 5}')
    form.get_by_label("Jobs a second").fill(str(PER_SECOND))
    form.get_by_label("Only say what would happen").check()
    form.get_by_role("button", name="Replay").click()
    person.agree()
    person.sees(f"Would be replayed: {MANY} of {MANY}")
    assert shop.states("shop.charge") == {"dead": MANY}
    form.get_by_label("Only say what would happen").uncheck()
    form.get_by_role("button", name="Replay").click()
    person.agree()
    person.page.get_by_text(f"Replayed: {MANY} of {MANY}", exact=True).wait_for()
    until(lambda: shop.states("shop.charge") == {"succeeded": MANY}, "the replayed jobs")
    rows = shop.rows("shop.charge")
    assert {each.id for each in rows} == {handle.id for handle in refused}
    assert {json.loads(each.payload)["amount"] for each in rows} == {5}
    assert len({json.loads(each.payload)["customer"] for each in rows}) == MANY, "other fields stay"
    [act] = audit.find(shop.database, acts=["edit"])
    assert (act.actor, act.subject_kind, act.count) == ("otto", "dead letter", MANY)
    took = max(each.started_at for each in rows) - act.at
    assert took.total_seconds() > MANY / PER_SECOND / 2, "throttled"
    person.sees("No dead letter of this group waits")


def cancel_what_a_tenant_waits_for(shop: Shop, person: Person) -> None:
    person.go("Kinds")
    person.pause("shop.letter", "wrong template")
    shop.wait_for_beats()
    for tenant, count in (("acme", MANY), ("other", 20)):
        for number in range(count):
            shop.producer.enqueue(Letter(to=f"{tenant}-{number}"), tenant=tenant)
    until(lambda: shop.states("shop.letter", "acme") == {"scheduled": MANY}, "the letters that are held back")

    person.go("Jobs")
    person.page.get_by_label("Tenant", exact=True).fill("acme")
    person.page.get_by_role("button", name="Filter", exact=True).click()
    person.page.wait_for_url("**/jobs?tenant=acme")
    person.page.get_by_label("Which jobs").select_option("all that match")
    person.page.get_by_label("What to do").select_option("cancel")
    person.page.get_by_role("button", name="Act …").click()
    person.sees(f"cancel: {MANY} jobs match")
    assert shop.states("shop.letter", "acme") == {"scheduled": MANY}
    person.agree()
    person.sees(f"Done: {MANY} jobs")
    assert shop.states("shop.letter", "acme") == {"cancelled": MANY}
    assert shop.states("shop.letter", "other").get("cancelled") is None
    [act] = audit.find(shop.database, acts=["cancel"])
    assert (act.actor, act.count) == ("otto", MANY)

    person.go("Kinds")
    person.row("shop.letter").get_by_text("paused").wait_for()
    person.row("shop.letter").get_by_role("button", name="Resume").click()
    until(lambda: shop.states("shop.letter", "other") == {"succeeded": 20}, "the letters of the other tenant")
    assert shop.states("shop.letter", "acme") == {"cancelled": MANY}
    assert [act[:4] for act in shop.acts()[-3:]] == [
        ("otto", "pause", "kind", "shop.letter"),
        ("otto", "cancel", "job", None),
        ("otto", "resume", "kind", "shop.letter"),
    ]


def retry_a_step(shop: Shop, person: Person, order: JobHandle) -> None:
    person.go("Workflows")
    person.page.get_by_label("State").select_option("failed")
    person.page.get_by_role("button", name="Filter").click()
    person.page.get_by_role("link", name=order.id).click()
    person.page.locator("svg text", has_text="invoice").first.wait_for()
    person.sees("the printer does not answer")
    [reserved] = shop.rows("shop.reserve")
    (shop.folder / "printer").touch()
    person.page.get_by_label("From").select_option("invoice")
    person.page.get_by_role("button", name="Retry").click()
    person.agree()
    person.sees("It goes on with invoice, letter")
    until(lambda: order.status().state is State.SUCCEEDED, "the end of the workflow")
    person.page.locator("dd", has_text="succeeded").first.wait_for()
    assert [each.id for each in shop.rows("shop.reserve")] == [reserved.id], "the step before it is not repeated"
    [act] = audit.find(shop.database, acts=["retry"])
    assert (act.actor, act.subject) == ("otto", order.id)


def find_the_slowest_kind(shop: Shop, person: Person) -> None:
    shop.producer.enqueue_many([Report(day=day) for day in range(2, 12)])
    person.go("Kinds")
    until(lambda: shop.states("shop.report") == {"succeeded": 11}, "the reports")
    slowest = person.page.locator("p", has_text="Slowest by p95 of the run")
    until(lambda: slowest.get_by_role("link").first.inner_text() == "shop.report", "the slowest kind")
    slowest.get_by_role("link", name="shop.report").click()
    person.page.wait_for_url("**/overview?*kind=shop.report*")
    card = person.page.locator("article", has_text="Run, p95")
    assert card.locator(".metric-value").inner_text() != "—"
    [row] = [each for each in _kinds(person) if each["kind"] == "shop.report"]
    assert row["run"]["p95"] > REPORT_SECONDS * 0.8


def look_at_the_audit_log(shop: Shop, person: Person) -> None:
    person.go("Audit")
    lines = person.page.locator("tbody tr")
    assert lines.count() == len(shop.acts())
    assert {text.split("\t")[1].strip() for text in lines.all_inner_texts()} == {"otto"}


def _kinds(person: Person) -> list[dict[str, Any]]:
    answer = person.page.evaluate("$.getJSON('/api/penstock/kinds')")
    kinds: list[dict[str, Any]] = answer["kinds"]
    return kinds
