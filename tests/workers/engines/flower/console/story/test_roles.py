"""The same console for a viewer, who sees all of it and changes nothing, and for an admin, over a running shop."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from shop_jobs import Charge, Order, Parcel, Report
from shop_site import PASSWORD, Person, Shop
from support.polling import until

from penstock.ledger.members import controls
from penstock.ledger.rows import audit
from penstock.schemas import State
from penstock.workers.engines.celery.flower.console import FURTHER_TABS, TABS
from penstock.workers.engines.celery.flower.page import API, Act
from penstock.workers.engines.celery.flower.pages import HANDLERS

ACTS = sorted(re.sub(r"\([^)]*\)", "shop", handler.path) for handler in HANDLERS if issubclass(handler, Act))
"""Addresses of all acts, below the API, on things that are called `shop`."""
STATUS = "path => new Promise(end => penstock.post(path, {}).done(() => end(200)).fail(answer => end(answer.status)))"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("shop", [("celery", "redis")], indirect=True, ids="-".join)
def test_a_viewer_sees_everything_and_changes_nothing(shop: Shop, open_page: Callable[..., Any]) -> None:
    shop.start_worker_of("shop")
    charge = shop.producer.enqueue(Charge(customer="c1", amount=-1))
    order = shop.producer.enqueue(Order(printer=str(shop.folder / "printer")))
    until(lambda: (charge.status().state, order.status().state) == ("dead", "dead"), "a dead letter and a workflow")
    controls.pause(shop.database, "kind", "shop.letter", actor="otto", reason="wrong template")
    before = shop.acts()
    person = Person(open_page("/", login=f"vera:{PASSWORD}"))

    def assert_sees(text: str = "wrong template") -> None:
        """The text is on the page, as is the reason of the pause, and no button or form of an act."""
        person.sees(text)
        person.page.locator(".console-banner", has_text="wrong template").wait_for()
        assert person.page.locator("[data-act], #job-acts").count() == 0, person.page.url

    for path, label in (*TABS, *FURTHER_TABS):
        if path != "settings":
            person.go(label)
            assert_sees()
    person.page.get_by_role("button", name="More").click()
    person.page.get_by_role("link", name="Audit", exact=True).wait_for()
    assert person.page.get_by_role("link", name="Settings").count() == 0
    person.go("Dead letters")
    person.page.get_by_role("link", name="the card was refused").click()
    assert_sees("wait for a decision")
    letters = person.page.locator("section[aria-labelledby=letters]")
    letters.get_by_role("link", name=charge.id).click()
    assert_sees("Traceback")
    person.go("Workflows")
    person.page.get_by_role("link", name=order.id).click()
    person.page.locator("svg text", has_text="invoice").first.wait_for()
    assert_sees("the printer does not answer")
    person.search(charge.id)
    assert_sees("What became of it")

    statuses = {path: person.page.evaluate(STATUS, API + path) for path in ACTS}
    assert set(statuses.values()) == {403}, statuses
    assert shop.acts() == before
    assert charge.status().state is State.DEAD


@pytest.mark.timeout(600)
@pytest.mark.parametrize("shop", [("dramatiq", "rabbitmq")], indirect=True, ids="-".join)
def test_an_admin_acts_on_what_concerns_all(shop: Shop, open_page: Callable[..., Any]) -> None:
    shop.start_worker_of("shop", "reports")
    until(shop.live_workers, "the worker")
    ada = Person(open_page("/", login=f"ada:{PASSWORD}"))
    ada.go("Queues")
    everything = ada.page.locator("form", has=ada.page.get_by_role("button", name="Pause everything"))
    everything.get_by_label("Reason").fill("upgrade of the database")
    everything.get_by_role("button").click()
    ada.agree()
    ada.sees("Everything is paused")
    shop.wait_for_beats()
    reports = shop.producer.enqueue_many([Report(day=day) for day in range(4)])
    parcels = shop.producer.enqueue_many([Parcel(number=number) for number in range(12)])
    otto = Person(open_page("/", login=f"otto:{PASSWORD}"))
    otto.sees("upgrade of the database")
    assert otto.page.locator(".console-banner").get_by_role("button").count() == 0, "it concerns all"
    until(lambda: "12" in ada.row("shop").inner_text().split(), "the parcels that wait")
    assert {handle.status().state for handle in reports} == {State.QUEUED}

    row = ada.row("reports")
    row.locator("summary", has_text="More").click()
    purge = row.locator("form", has=ada.page.get_by_role("button", name="Purge 4 jobs"))
    purge.get_by_label("Reason").fill("of last year")
    purge.get_by_role("button").click()
    ada.agree()
    ada.sees("4 jobs removed; 4 were on record")
    assert {handle.status().state for handle in reports} == {State.CANCELLED}
    ada.resume("upgrade of the database")
    assert {handle.wait(90).state for handle in parcels} == {State.SUCCEEDED}
    ada.go("Settings")
    ada.sees("grace_seconds")
    assert shop.acts() == [
        ("ada", "pause", "all", None, 1),
        ("ada", "purge", "queue", "reports", 4),
        ("ada", "resume", "all", None, 1),
    ]
    [purged] = audit.find(shop.database, acts=["purge"])
    assert purged.detail["reason"] == "of last year"
