"""The contract of every engine on every broker. An engine that fails this is not an engine."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import acme
import pytest
from support.polling import WAIT_SECONDS, until
from support.stack import PAIRS, Stack, lines

from penstock.config.errors import PayloadTooLarge
from penstock.ledger.queries.status import Progress
from penstock.schemas.wire.codec import Envelope, encode


def test_a_job_runs_with_its_typed_message_and_its_result_and_progress_are_readable(stack: Stack) -> None:
    handle = stack.producer.enqueue(acme.Add(a=1, b=2, note="s3cret"), key="k1", tenant="t1")
    status = handle.wait(WAIT_SECONDS)
    assert (status.state, status.attempt, status.result["sum"]) == ("succeeded", 1, 3)
    assert status.progress == Progress(1, 2, "adding")
    assert handle.result()["sum"] == 3
    row = stack.row(handle.id)
    assert (row.key, row.tenant, row.kind) == ("k1", "t1", "acme.add")
    if stack.engine != "inline":
        assert int(status.result["engine_thread"]) != os.getpid()


def test_a_failure_is_retried_with_backoff_and_then_is_a_dead_letter(stack: Stack) -> None:
    handle = stack.producer.enqueue(acme.Fail(mark="m1"))
    status = handle.wait(WAIT_SECONDS)
    assert (status.state, status.failures, status.attempt) == ("dead", 3, 3)
    assert status.error == "ValueError: failed on purpose: m1"
    letter = stack.letter(handle.id)
    assert (letter.reason, letter.kind) == ("failed", "acme.fail")


def test_a_handler_that_fails_twice_succeeds_with_its_third_attempt(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "flaky"
    status = stack.producer.enqueue(acme.Flaky(file=str(file), failures=2)).wait(WAIT_SECONDS)
    assert (status.state, status.result, status.failures) == ("succeeded", 3, 2)
    assert lines(file) == ["1", "2", "3"]


def test_a_snooze_comes_back_and_costs_no_attempt(stack: Stack, tmp_path: Path) -> None:
    status = stack.producer.enqueue(acme.SnoozeOnce(file=str(tmp_path / "snooze"))).wait(WAIT_SECONDS)
    assert (status.state, status.result) == ("succeeded", {"attempt": 1})


def test_plain_functions_and_isolated_ones_run_too(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "thread"
    threaded = stack.producer.enqueue(acme.MarkInThread(file=str(file), text="x"))
    isolated = stack.producer.enqueue(acme.Isolated(text="y"))
    assert threaded.wait(WAIT_SECONDS).state == "succeeded"
    assert lines(file) == ["x"]
    assert isolated.wait(WAIT_SECONDS).result["text"] == "y"
    assert isolated.status().result["pid"] != os.getpid()


def test_a_result_of_an_isolated_handler_may_be_larger_than_a_sockets_buffer(stack: Stack) -> None:
    text = "y" * 200_000
    status = stack.producer.enqueue(acme.Isolated(text=text)).wait(WAIT_SECONDS)
    assert (status.state, status.error) == ("succeeded", None)


def test_a_delayed_job_does_not_run_before_its_time(stack: Stack, tmp_path: Path) -> None:
    delay = timedelta(seconds=1)
    before = datetime.now(UTC)
    handle = stack.producer.enqueue(acme.Mark(file=str(tmp_path / "delayed"), text="x"), delay=delay)
    far = stack.producer.enqueue(acme.Mark(file=str(tmp_path / "delayed"), text="far"), delay=timedelta(days=90))
    until(lambda: far.status().state == "scheduled", "the far one's row")
    status = handle.wait(WAIT_SECONDS)
    assert status.state == "succeeded"
    assert status.started_at is not None
    assert status.started_at - before >= delay
    assert far.cancel() == "cancelled"


@pytest.mark.parametrize(
    ("task", "body", "reason"),
    [
        ("acme.add", b'[[], {"a": 1}, {}]', "invalid_payload"),
        ("acme.add", b"\x00\xff{{", "undecodable"),
        ("acme.none", b"[[], {}, {}]", "unknown_kind"),
        ("acme.removed", b"[[], {}, {}]", "no_handler"),
    ],
)
def test_a_message_that_cannot_run_becomes_a_dead_letter_with_a_reason(
    stack: Stack, task: str, body: bytes, reason: str, request: pytest.FixtureRequest
) -> None:
    job_id = f"bad-{request.node.name}"[:100]
    envelope = Envelope("acme", "normal", {"lang": "py", "task": task, "id": job_id}, body)
    stack.producer._sender.send([envelope])
    letter = until(lambda: stack.letter(job_id), "the dead letter")
    assert (letter.reason, letter.raw) == (reason, body)
    assert letter.detail
    assert stack.producer.handle(job_id).status().state == "dead"


def test_a_payload_at_the_limit_arrives_and_one_above_it_is_refused(stack: Stack) -> None:
    room = 256 * 1024 - len(encode(acme.Blob(text="")).body)
    assert stack.producer.enqueue(acme.Blob(text="x" * room)).result(WAIT_SECONDS) == room
    with pytest.raises(PayloadTooLarge):
        stack.producer.enqueue(acme.Blob(text="x" * (room + 1)))


def test_an_untracked_job_runs_and_leaves_no_row(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "untracked"
    handle = stack.producer.enqueue(acme.Untracked(file=str(file), text="x"))
    until(lambda: lines(file) == ["x"], "the run")
    stack.producer.enqueue(acme.Add(a=1, b=1)).wait(WAIT_SECONDS)
    assert stack.row(handle.id) is None


def test_a_duplicate_is_run_once(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "once"
    envelope = encode(acme.MarkOnce(file=str(file), text="x"))
    stack.producer._sender.send([envelope] * 5)
    assert stack.producer.handle(envelope.id).wait(WAIT_SECONDS).state == "succeeded"
    assert stack.producer.enqueue(acme.Add(a=1, b=1)).wait(WAIT_SECONDS).state == "succeeded"
    assert lines(file) == ["x"]


def test_a_unique_job_is_one_and_its_key_is_free_when_it_is_cancelled(stack: Stack, tmp_path: Path) -> None:
    file, key = str(tmp_path / "unique"), f"key of {tmp_path}"[-200:]
    first = stack.producer.enqueue(acme.Mark(file=file, text="x", seconds=3600), key=key, unique="existing")
    again = stack.producer.enqueue(acme.Mark(file=file, text="x", seconds=3600), key=key, unique="existing")
    assert (again.id, again.created) == (first.id, False)
    until(lambda: first.status().state == "running", "the run")
    assert stack.producer.cancel(key=key) == [first.id]
    assert first.wait(WAIT_SECONDS).state == "cancelled"
    second = stack.producer.enqueue(acme.Mark(file=file, text="y"), key=key, unique="reject")
    assert second.wait(WAIT_SECONDS).state == "succeeded"
    assert lines(tmp_path / "unique") == ["y"]


def test_a_running_job_is_cancelled(stack: Stack, tmp_path: Path) -> None:
    handle = stack.producer.enqueue(acme.Mark(file=str(tmp_path / "cancelled"), text="x", seconds=3600))
    until(lambda: handle.status().state == "running", "the run")
    handle.cancel()
    assert handle.wait(WAIT_SECONDS).state == "cancelled"
    assert lines(tmp_path / "cancelled") == []


@pytest.mark.parametrize("stack", PAIRS, indirect=True, ids="-".join)
def test_a_stock_celery_clients_send_task_runs(stack: Stack) -> None:
    """The inline engine has no broker that others could send to."""
    import celery

    app = celery.Celery(broker=stack.broker_url)
    app.conf.task_default_queue = stack.stock_queue
    with app:
        by_name = app.send_task("acme.add", kwargs={"a": 20, "b": 22})
        by_position = app.send_task("acme.add", args=[2, 3])
        to_queue = app.send_task("acme.add", kwargs={"a": 1, "b": 1}, countdown=1)
        unknown = app.send_task("acme.nowhere", kwargs={"x": 1})
        wrong = app.send_task("acme.add", kwargs={"a": "no number"})
    for result, expected in ((by_name, 42), (by_position, 5), (to_queue, 2)):
        assert stack.producer.handle(result.id).result(WAIT_SECONDS)["sum"] == expected
    for result, reason in ((unknown, "unknown_kind"), (wrong, "invalid_payload")):
        letter = until(lambda result=result: stack.letter(result.id), "the dead letter")
        assert letter.reason == reason
        assert json.loads(letter.headers)["id"] == result.id
