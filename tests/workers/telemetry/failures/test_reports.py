"""Failures of real workers and dispatchers: a line in the log, an event of Sentry and a call of the hook for each."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from reported_jobs import (
    MARKER,
    QUEUE,
    Crash,
    Fail,
    FailInThread,
    FailIsolated,
    Nightly,
    OnlyOnce,
    Secret,
    Trip,
)
from support.polling import until
from workers.telemetry.failures.conftest import Reported

from penstock.ledger.sql.tables import dead_letters, schedules
from penstock.producers.senders import open_sender
from penstock.schemas.wire.codec import Envelope, encode


def dead(stack: Reported, job_id: str) -> Any:
    """The dead letter of a job, once its failure was reported everywhere."""
    letter = until(lambda: stack.letter(job_id), "a dead letter")
    until(lambda: stack.log(job_id=job_id, outcome="dead"), "its line")
    until(lambda: any(failure["is_dead"] for failure in stack.hooked(job_id)), "the hook")
    until(lambda: [event for event in stack.events(job_id) if event["level"] == "error"], "its event")
    return letter


def test_each_failed_attempt_is_a_line_an_event_and_a_call_with_all_that_is_known(stack: Reported) -> None:
    handle = stack.producer.enqueue(Fail(), tenant="acme")
    letter = dead(stack, handle.id)
    retry, death = (line for line in stack.log(job_id=handle.id) if "fingerprint" in line)
    fields = {
        "kind": "reported.fail",
        "queue": QUEUE,
        "tenant": "acme",
        "max_attempts": 2,
        "fingerprint": letter.fingerprint,
    }
    assert fields.items() <= retry.items()
    assert fields.items() <= death.items()
    assert (retry["level"], retry["attempt"], retry["outcome"]) == ("warning", 1, "retry")
    assert (death["level"], death["attempt"], death["outcome"]) == ("error", 2, "dead")
    assert datetime.fromisoformat(retry["next_attempt_at"]) <= datetime.now(UTC)
    assert "next_attempt_at" not in death
    assert retry["worker"].startswith(f"{stack.engine}@")
    assert death["exception"].startswith("Traceback")
    assert death["exception"].endswith("ValueError: boom of 13")

    warning, error = stack.events(handle.id)
    assert (warning["level"], error["level"]) == ("warning", "error")
    assert error["fingerprint"] == [letter.fingerprint]
    assert error["tags"] == {
        "kind": "reported.fail",
        "queue": QUEUE,
        "engine": stack.engine,
        "worker": death["worker"],
        "outcome": "dead",
        "reason": "failed",
        "application": "reported",
    }
    assert error["contexts"]["job"]["attempt"] == 2
    assert error["contexts"]["job"]["tenant"] == "acme"
    [value] = error["exception"]["values"]
    assert (value["type"], value["value"]) == ("ValueError", "boom of 13")
    frames = value["stacktrace"]["frames"]
    assert (frames[-1]["function"], frames[-1].get("in_app", True)) == ("fail", True)
    assert frames[-1]["vars"]["secret_of_mine"] == "'a local value'"
    assert [frame for frame in frames[:-1] if frame.get("in_app", True) or "vars" in frame] == []
    crumbs = [crumb["message"] for crumb in error["breadcrumbs"]["values"] if crumb["category"] != "httplib"]
    assert crumbs == ["before raise", "the shop is open"], "of this attempt alone"

    first, second = stack.hooked(handle.id)
    assert (first["outcome"], first["exception"], second["outcome"]) == ("retry", "ValueError", "dead")
    assert second["fingerprint"] == letter.fingerprint
    assert second["engine"] == stack.engine
    assert stack.log(logger="penstock.failures", job_id=None) == []
    assert "hook broken raised RuntimeError" in (stack.folder / "worker-1.log").read_text()


def test_a_returned_retry_is_no_exception(stack: Reported) -> None:
    handle = stack.producer.enqueue(Fail(how="retry"))
    dead(stack, handle.id)
    warning, _ = stack.events(handle.id)
    assert "stacktrace" not in warning["exception"]["values"][0]
    assert warning["exception"]["values"][0]["value"] == "it is busy"


def test_lines_of_threads_and_children_have_the_jobs_fields(stack: Reported) -> None:
    threaded = stack.producer.enqueue(FailInThread(), tenant="t1")
    isolated = stack.producer.enqueue(FailIsolated(card=MARKER), tenant="t2")
    dead(stack, threaded.id)
    dead(stack, isolated.id)
    for handle, tenant, kind in ((threaded, "t1", "reported.thread"), (isolated, "t2", "reported.isolated")):
        line = stack.log(job_id=handle.id, logger="shop")[0]
        worker = stack.log(job_id=handle.id, outcome="dead")[0]["worker"]
        fields = {"attempt": 1, "kind": kind, "queue": QUEUE, "tenant": tenant, "worker": worker, "level": "info"}
        assert fields.items() <= line.items()
    [event] = stack.events(isolated.id)
    assert event["exception"]["values"][0]["value"].startswith("boom in a child with ***")
    assert "boom in a child with ***" in event["extra"]["traceback"]


def test_log_jobs_writes_a_line_at_the_start_and_the_end(stack: Reported) -> None:
    handle = stack.producer.enqueue(Nightly(), tenant="acme")
    ended = until(lambda: stack.log(job_id=handle.id, outcome="succeeded"))[0]
    assert ended["seconds"] >= 0
    assert ended["tenant"] == "acme"
    assert [line["event"].rpartition(" ")[2] for line in stack.log(job_id=handle.id)] == ["starts", "succeeded"]


def test_deaths_without_an_error_of_a_handler_are_reported_once(stack: Reported) -> None:
    sender = open_sender(stack.settings.broker_url, prefix=stack.settings.prefix)
    unknown = Envelope(QUEUE, "normal", encode(Fail()).headers | {"task": "reported.unknown"}, b"[[],{},null]")
    sender.send([unknown])
    sender.close()
    workflow = stack.producer.enqueue(Trip())
    assert dead(stack, unknown.id).reason == "unknown_kind"
    assert dead(stack, workflow.id).reason == "failed"
    for job_id in (unknown.id, workflow.id):
        [line] = [line for line in stack.log(job_id=job_id) if line["level"] == "error"]
        assert line["fingerprint"] == stack.letter(job_id).fingerprint
        [event] = stack.events(job_id)
        assert event["fingerprint"] == [line["fingerprint"]]


def test_a_job_that_kills_its_worker_is_reported_when_that_is_found(stack: Reported) -> None:
    for job in (Crash(), OnlyOnce()):
        handle = stack.producer.enqueue(job)
        until(lambda: stack.processes[-1].poll() is not None, "the end of the worker")
        stack.start_worker()
        assert dead(stack, handle.id).reason == "crashed"
        [line] = [line for line in stack.log(job_id=handle.id) if line["level"] == "error"]
        [event] = stack.events(handle.id)
        assert event["fingerprint"] == [line["fingerprint"]] == [stack.letter(handle.id).fingerprint]


def test_what_is_sensitive_is_in_no_log_and_no_event(stack: Reported) -> None:
    ways = ("raise", "validation", "chained", "group", "note")
    handles = [stack.producer.enqueue(Secret(card=f"{MARKER}-{way}", how=way)) for way in ways]
    for handle in handles:
        dead(stack, handle.id)
        assert len(stack.events(handle.id)) == 1
        assert "vars" not in json.dumps(stack.events(handle.id))
        crumbs = json.dumps(stack.events(handle.id)[0]["breadcrumbs"])
        assert "paid with ***" in crumbs
    files = [path for path in stack.folder.rglob("*") if path.suffix in (".log", ".jsonl")]
    assert {"sentry.jsonl", "hooked.jsonl", "worker-1.log"} <= {path.name for path in files}
    assert [path.name for path in files if MARKER in path.read_text()] == []


def test_a_schedule_checks_in_when_its_job_ends(stack: Reported) -> None:
    until(lambda: stack.database.read(lambda c: c.execute(sa.select(schedules)).first()), "the schedule")
    before = len(stack.check_ins())
    now = datetime.now(UTC) - timedelta(milliseconds=10)
    rule = sa.select(schedules.c.rule)
    assert "reported.nightly" in stack.database.read(lambda c: str(c.scalar(rule)))
    stack.database.write(lambda c: c.execute(sa.update(schedules).values(next_at=now, due_at=now)))
    last = until(
        lambda: [check_in for check_in in stack.check_ins()[before:] if check_in["status"] in ("ok", "error")]
    )[-1]
    assert last["monitor_slug"] == "nightly-run"
    assert last["status"] == "ok"
    assert last["monitor_config"] == {
        "schedule": {"type": "crontab", "value": "0 3 * * *"},
        "timezone": "Europe/Berlin",
        "checkin_margin": 1,
        "max_runtime": 2,
    }
    assert last["check_in_id"] in [row.replace("-", "") for row in firing_jobs(stack)]


def firing_jobs(stack: Reported) -> list[str]:
    return [str(stack.database.read(lambda c: c.scalar(sa.select(schedules.c.last_job_id))))]


def test_a_dead_letter_has_one_event_however_many_integrations_there_are(stack: Reported) -> None:
    """Sentry's own for Celery, Dramatiq and logging are on, as they are by default."""
    handles = [stack.producer.enqueue(Fail()) for _ in range(5)]
    for handle in handles:
        dead(stack, handle.id)
    letters = stack.database.read(lambda c: list(c.scalars(sa.select(dead_letters.c.id))))
    deaths = [event for event in stack.events() if event["level"] == "error" and event["logger"] == "penstock.jobs"]
    assert sorted(event["contexts"]["job"]["id"] for event in deaths) == sorted(letters)
