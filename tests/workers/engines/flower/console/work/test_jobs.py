"""The pages of jobs: lists by filters, one job, acts on many, the search box."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from served import Flower
from support.ledgers import Note, claimed, end, message, row_of
from support.polling import until

from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.transitions import due
from penstock.producers import Producer
from penstock.producers.senders import open_sender
from penstock.schemas import Outcome
from penstock.schemas.wire.codec import encode
from penstock.workers.local.up.redis_server import RedisServer, free_port

HOSTILE = "<script>alert(1)</script>"


def post(console: Flower, path: str, **body: Any) -> Any:
    return console.post(path, body=json.dumps(body).encode(), Content_Type="application/json")


def wait_until_due(ledger: Database, count: int, tenant: str) -> list[str]:
    envelopes = [encode(Note(), tenant=tenant, due_at=datetime.now(UTC) + timedelta(hours=1)) for _ in range(count)]
    due.schedule(ledger, envelopes)
    return [envelope.id for envelope in envelopes]


def dead(ledger: Database, text: str = "", **options: Any) -> str:
    sent = message(Note(text=text), **options)
    end(ledger, claimed(ledger, sent), Outcome.DEAD, error=f"ValueError: {text}", reason="failed", detail="x")
    return sent.id


def test_lists_have_the_filters_of_the_command_line_and_pages(console: Flower, ledger: Database) -> None:
    bad = dead(ledger, HOSTILE, tenant="acme", key=HOSTILE, tags=(HOSTILE,))
    waiting = wait_until_due(ledger, 3, "other")

    def ids(query: str) -> list[str]:
        return [job["id"] for job in console.get(f"api/penstock/jobs?{query}")["jobs"]]

    assert ids("state=dead&finished_since=1h") == ids("tenant=acme") == ids("error_class=ValueError") == [bad]
    assert ids(f"id={bad[:30]}") == [bad]
    assert set(ids("tenant=other")) == set(waiting)
    first = console.get("api/penstock/jobs?limit=2")
    assert len(first["jobs"]) == 2
    assert len(ids(f"limit=2&cursor={first['next']}")) == 2
    html = console.get("jobs")
    assert HOSTILE not in html
    assert "&lt;script&gt;" in html
    for wrong in ("state=none", "cursor=x", "field=customer", "enqueued_since=soon", "field=customer=1"):
        assert console.get(f"api/penstock/jobs?{wrong}") == 400, wrong


def test_a_job_in_a_queue_that_only_the_broker_knows_is_explained(
    console: Flower, redis_server: RedisServer, prefix: str
) -> None:
    job = replace(encode(Note()), queue="of-other-code")
    with closing(open_sender(redis_server.url, prefix=prefix)) as sender:
        sender.send([job])

    def facts() -> Any:
        return console.get(f"api/penstock/jobs/{job.id}")["explanation"]["facts"]

    until(lambda: "queue" in facts(), "the next look at the broker's queues")
    assert (facts()["queue"], facts()["position"]) == ("of-other-code", 1)


def test_jobs_in_the_broker_that_are_not_on_record_are_marked(
    open_page: Callable[..., Any], console: Flower, redis_server: RedisServer, prefix: str
) -> None:
    producer = Producer(redis_server.url, prefix=prefix)
    ours = producer.enqueue(Note(), tenant="acme", key=HOSTILE)
    other = producer.enqueue(Note(), tenant="other")
    producer.close()
    assert console.get("api/penstock/jobs")["in_broker"] is None, "it asks the broker only if it is asked to"
    seen = console.get("api/penstock/jobs?in_broker=oldest")["in_broker"]
    assert [job["id"] for job in seen["jobs"]] == [ours.id, other.id]
    assert (seen["waiting"], seen["note"]) == (2, None)
    assert console.get("api/penstock/jobs?in_broker=all") == 400
    [job] = console.get("api/penstock/jobs?in_broker=newest&tenant=acme")["in_broker"]["jobs"]
    assert (job["kind"], job["queue"], job["key"]) == ("ledger.note", "notes", HOSTILE)
    for width in (390, 1280):
        page = open_page("jobs", width=width)
        page.get_by_label("In the broker").select_option("newest")
        page.get_by_role("button", name="Filter", exact=True).click()
        section = page.get_by_role("region", name="In the broker, not on record").first
        section.wait_for()
        assert ours.id[:8] in section.inner_text()
        assert "2 jobs wait in the broker" in section.inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_page_of_jobs_without_its_broker_says_so(start_console: Callable[..., Flower]) -> None:
    console = start_console(PENSTOCK_BROKER_URL=f"redis://127.0.0.1:{free_port()}")
    page = console.get("api/penstock/jobs?in_broker=newest")
    assert (page["jobs"], page["in_broker"]["jobs"]) == ([], [])
    assert "Redis" in page["in_broker"]["note"]


def test_a_job_has_its_attempts_its_reason_and_its_acts(console: Flower, ledger: Database) -> None:
    job_id = dead(ledger, HOSTILE)
    page = console.get(f"api/penstock/jobs/{job_id[:30]}")
    assert page["job"]["state"] == "dead"
    assert page["attempts"][0]["outcome"] == "dead"
    assert page["explanation"]["because"]
    assert page["job"]["payload"] == {"text": "***"}, "its kind is not known there"
    assert HOSTILE not in console.get(f"jobs/{job_id}")
    assert "runs again" in post(console, f"api/penstock/jobs/{job_id}/retry")["message"]
    assert row_of(ledger, job_id).state == "scheduled"
    assert post(console, f"api/penstock/jobs/{job_id}/reschedule", due="in 2h")["message"].startswith("Due at")
    assert post(console, f"api/penstock/jobs/{job_id}/cancel")["state"] == "cancelled"
    assert post(console, f"api/penstock/jobs/{job_id}/cancel") == 409
    assert [(act.actor, act.act) for act in audit.find(ledger, subject=job_id)] == [
        ("op", "cancel"),
        ("op", "reschedule"),
        ("op", "retry"),
    ]
    assert "What became of it" in console.get("jobs/nothing"), "also of one that only the broker may know"


def test_all_that_match_are_changed_in_parts_with_one_line_in_the_audit_log(console: Flower, ledger: Database) -> None:
    ids = wait_until_due(ledger, 600, "acme")
    others = wait_until_due(ledger, 2, "other")
    chosen = {"act": "cancel", "filter": {"tenant": "acme"}}
    assert post(console, "api/penstock/acts/jobs", dry_run=True, **chosen)["matching"] == 600
    answer = post(console, "api/penstock/acts/jobs", **chosen)
    done = answer["done"]
    while answer["next"] is not None:
        answer = post(console, "api/penstock/acts/jobs", after=answer["next"], line=answer["line"], **chosen)
        done += answer["done"]
    assert done == 600
    assert row_of(ledger, ids[0]).state == "cancelled"
    assert row_of(ledger, others[0]).state == "scheduled"
    assert [(line.act, line.count) for line in audit.find(ledger)] == [("cancel", 600)]
    assert post(console, "api/penstock/acts/jobs", act="cancel") == 400, "neither ids nor a filter"
    assert post(console, "api/penstock/acts/jobs", act="move", ids=others, queue="nowhere") == 400


@pytest.mark.parametrize("below", ["", "tools"])
def test_the_search_box_leads_to_a_job_or_a_list(
    below: str, start_console: Callable[..., Flower], ledger: Database
) -> None:
    console = start_console(**({"FLOWER_URL_PREFIX": below} if below else {}))
    base, before = (f"/{below}", f"{below}/") if below else ("", "")
    job_id = dead(ledger, key="order-7", tenant="acme")
    wait_until_due(ledger, 1, "acme")

    def leads_to(text: str) -> Any:
        return console.get(f"{before}api/penstock/search?q={text}")["leads_to"]

    assert leads_to(job_id) == leads_to("order-7") == f"{base}/jobs/{job_id}"
    assert leads_to("acme") == f"{base}/jobs?tenant=acme"
    assert leads_to("nothing") is None
    assert "Nothing on record" in console.get(f"{before}search?q=nothing")
    assert job_id in console.get(f"{before}task/{job_id}"), "Flower's own address leads there"
    assert job_id in console.get(f"{before}tasks")


def test_an_operator_cancels_all_that_match_in_the_browser(open_page: Callable[..., Any], ledger: Database) -> None:
    ids = wait_until_due(ledger, 5, "acme")
    page = open_page("jobs?tenant=acme")
    page.get_by_label("Which jobs").select_option("all")
    page.get_by_role("button", name="Act …").click()
    page.get_by_text("cancel: 5 jobs match").wait_for()
    page.get_by_role("button", name="Do it").click()
    page.get_by_text("Done: 5 jobs").wait_for()
    until(lambda: {row_of(ledger, id).state for id in ids} == {"cancelled"}, "all of them")
    page.get_by_role("link", name=ids[-1]).click()
    page.get_by_role("heading", name="What became of it").wait_for()
