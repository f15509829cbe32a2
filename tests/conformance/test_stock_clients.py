"""Unmodified Celery and Dramatiq clients send to every engine on every broker, and a stock Celery worker runs ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dramatiq
import kombu.pools
import pytest
from celery import Celery, Signature, chain, group
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from support.polling import WAIT_SECONDS, until
from support.servers.shared import for_pika
from support.stack import PAIRS, Stack, lines

from penstock.producers import Producer
from penstock.producers.senders.rabbitmq.publisher import connect
from penstock.schemas import Job

HERE = Path(__file__).parent
pairs = pytest.mark.parametrize("stack", PAIRS, indirect=True, ids="-".join)


class Append(Job, kind="stock.append", queue="theirs"):
    file: str
    text: str


@pytest.fixture
def app(stack: Stack) -> Iterator[Celery]:
    with celery_client(stack) as app:
        yield app
    if stack.broker_url.startswith("amqp"):
        kombu.pools.reset()
        connection = connect(stack.broker_url, timeout_seconds=10)
        connection.channel().exchange_delete(stack.stock_queue)
        connection.close()


def celery_client(stack: Stack) -> Celery:
    app = Celery(broker=stack.broker_url, set_as_current=False)
    app.conf.task_default_queue = stack.stock_queue
    return app


def note(app: Celery, file: Path | None = None, *args: Any) -> Signature:
    return app.signature("acme.note", args=args, kwargs={"file": "" if file is None else str(file)})


def blob(app: Celery, *args: Any, **options: Any) -> Signature:
    return app.signature("acme.blob", args=args, **options)


@pairs
def test_the_options_of_celerys_apply_async_count(stack: Stack, app: Celery) -> None:
    before = datetime.now(UTC)
    signature = note(app, None, "x")
    by_countdown = signature.apply_async(countdown=1)
    by_eta = signature.apply_async(eta=before + timedelta(seconds=1), expires=3600)
    urgent = signature.apply_async(priority=9)
    plain = app.send_task("acme.add", args=[20], kwargs={"b": 22})
    assert stack.producer.handle(plain.id).result(WAIT_SECONDS)["sum"] == 42
    for sent in (by_countdown, by_eta):
        status = stack.producer.handle(sent.id).wait(WAIT_SECONDS)
        assert status.state == "succeeded"
        assert status.started_at is not None
        assert status.started_at - before >= timedelta(seconds=1)
    expires = stack.row(by_eta.id).expires_at
    assert timedelta(seconds=3600) <= expires - before < timedelta(seconds=3660)
    stack.producer.handle(urgent.id).wait(WAIT_SECONDS)
    assert stack.row(urgent.id).priority == ("high" if stack.broker_url.startswith("amqp") else "low")


@pairs
def test_callbacks_of_a_stock_celery_client_follow_its_job(stack: Stack, app: Celery, tmp_path: Path) -> None:
    called, failed, fanned = tmp_path / "called", tmp_path / "failed", tmp_path / "fanned"
    two = chain(note(app, None, "three"), blob(app)).apply_async()
    immutable = chain(note(app, None, "three"), blob(app, "four", immutable=True), note(app)).apply_async()
    linked = note(app, None, "r").apply_async(link=[note(app, called), chain(blob(app), note(app, called))])
    fails = app.send_task("acme.fail", kwargs={"mark": "m"}, link_error=note(app, failed))
    broken = chain(app.signature("acme.fail", args=("m",)), note(app)).on_error(note(app, failed)).apply_async()
    chain(note(app, None, "g"), group(note(app, fanned), note(app, fanned))).apply_async()

    handle = stack.producer.handle
    assert handle(two.id).result(WAIT_SECONDS) == 5
    assert handle(immutable.id).result(WAIT_SECONDS) == 4
    assert handle(linked.id).result(WAIT_SECONDS) == "r"
    until(lambda: sorted(lines(called)) == ["1", "r"], "both callbacks")
    until(lambda: len(lines(failed)) == 2, "both errbacks")
    assert sorted(lines(failed)) == sorted([fails.id, broken.parent.id])
    until(lambda: lines(fanned) == ["g", "g"], "the group")
    assert stack.row(broken.id) is None


@pairs
def test_a_callback_that_cannot_follow_is_refused_before_the_job_runs(
    stack: Stack, app: Celery, tmp_path: Path
) -> None:
    file = tmp_path / "never"
    chord = note(app, file, "x").apply_async(chord=blob(app).clone())
    too_many = note(app, file, "x").apply_async(link=blob(app, "one too many"))
    unknown = note(app, None, "x").apply_async(link=app.signature("acme.nowhere").set(task_id=f"nowhere-{chord.id}"))
    for job_id, reason, detail in (
        (chord.id, "unsupported", "a chord is to follow it"),
        (too_many.id, "invalid_payload", "2 positional arguments for 1 fields"),
        (f"nowhere-{chord.id}", "unknown_kind", "acme.nowhere"),
    ):
        letter = until(lambda job_id=job_id: stack.letter(job_id), "the dead letter")
        assert letter.reason == reason
        assert detail in letter.detail
    assert stack.producer.handle(unknown.id).wait(WAIT_SECONDS).state == "succeeded"
    assert lines(file) == []


@pytest.fixture
def dramatiq_client(stack: Stack) -> Iterator[dramatiq.Broker]:
    if stack.broker_url.startswith("amqp"):
        broker: Any = RabbitmqBroker(url=for_pika(stack.broker_url), confirm_delivery=True)
        yield broker
        for suffix in ("", ".DQ", ".XQ"):
            broker.channel.queue_delete(stack.dramatiq_queue + suffix)
    else:
        broker = RedisBroker(url=stack.broker_url)
        yield broker
        broker.client.connection_pool.disconnect()
    broker.close()


@pairs
def test_a_stock_dramatiq_clients_messages_run(stack: Stack, dramatiq_client: dramatiq.Broker, tmp_path: Path) -> None:
    file = tmp_path / "never"

    @dramatiq.actor(actor_name="acme.add", queue_name=stack.dramatiq_queue, broker=dramatiq_client)
    def add(a: int, b: int) -> None: ...

    @dramatiq.actor(actor_name="acme.mark", queue_name=stack.dramatiq_queue, broker=dramatiq_client)
    def mark(file: str, text: str) -> None: ...

    @dramatiq.actor(actor_name="acme.nowhere", queue_name=stack.dramatiq_queue, broker=dramatiq_client)
    def nowhere() -> None: ...

    before = datetime.now(UTC)
    sent = add.send(20, b=22)
    delayed = add.send_with_options(args=(1, 1), delay=1500)
    unknown = nowhere.send()
    messages = [mark.message(str(file), text) for text in "xy"]
    piped = dramatiq.pipeline(messages, broker=dramatiq_client).run()
    assert stack.producer.handle(sent.message_id).result(WAIT_SECONDS)["sum"] == 42
    status = stack.producer.handle(delayed.message_id).wait(WAIT_SECONDS)
    assert status.state == "succeeded"
    assert status.started_at is not None
    assert status.started_at - before >= timedelta(seconds=1.5)
    for message, reason in ((unknown, "unknown_kind"), (piped.messages[0], "unsupported")):
        letter = until(lambda message=message: stack.letter(message.message_id), "the dead letter")
        assert letter.reason == reason
    assert lines(file) == []


@pytest.mark.parametrize("own_stack", PAIRS[:1], indirect=True, ids="-".join)
def test_a_chain_goes_on_when_workers_are_killed_on_its_way(own_stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "steps"
    with celery_client(own_stack) as app:
        steps = [app.signature("acme.markonce", args=(str(file), str(n)), immutable=True) for n in range(20)]
        last = chain(*steps).apply_async()
    for reached in (3, 10):
        worker = own_stack.start_worker()
        until(lambda reached=reached: len(lines(file)) >= reached, "some steps")
        own_stack.stop_process(worker, signal.SIGKILL)
    own_stack.start_worker()
    assert own_stack.producer.handle(last.id).wait(WAIT_SECONDS).state == "succeeded"
    done = [int(text) for text in lines(file)]
    assert sorted(set(done)) == list(range(20))
    assert done == sorted(done)


def test_a_stock_celery_worker_runs_what_our_producer_sends(
    amqp_url: str, celery_delays: None, prefix: str, tmp_path: Path
) -> None:
    """Over RabbitMQ: Redis Streams are nothing that Celery reads."""
    file = tmp_path / "theirs"
    with Producer(amqp_url, prefix=prefix) as producer:
        producer.enqueue_many([Append(file=str(file), text=str(number)) for number in range(3)])
    command = [sys.executable, "-m", "celery", "-A", "stock_worker", "worker", "--pool", "solo"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "-n", f"{prefix}@%h"]
    env = os.environ | {"STOCK_BROKER": amqp_url, "STOCK_QUEUE": f"{prefix}.theirs", "PYTHONPATH": str(HERE)}
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log)
    try:
        until(lambda: len(lines(file)) == 3 or worker.poll() is not None, "three lines")
        assert lines(file) == ["0", "1", "2"], (tmp_path / "worker.log").read_text()
    finally:
        worker.kill()
        worker.wait()
