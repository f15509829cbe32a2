"""Each condition of an alert begins and ends, on real services, and each onset and end is notified once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from support.brokers import Arrivals
from support.ledgers import Note, claimed, end, message, start_worker
from support.servers.shared import broker_url, delete_queues
from workers.dispatcher.outbox.outbox_relays import OUT
from workers.dispatcher.schedule_rules import HOURLY, overdue, rules

from penstock.config.settings import Settings
from penstock.ledger.alerts import judging
from penstock.ledger.alerts.overview import read_alerts, read_firings
from penstock.ledger.alerts.silences import silence, unsilence
from penstock.ledger.members import heartbeats
from penstock.ledger.queries.selection import Selection
from penstock.ledger.rows import audit
from penstock.ledger.rows.rates.counting import count_ends
from penstock.ledger.schedules.declare import declare_schedules
from penstock.ledger.schedules.firing import fire
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import alert_firings, alerts, dead_letters, firings, jobs, outbox
from penstock.ledger.transitions.replay import discard
from penstock.producers import Producer
from penstock.schemas import Outcome
from penstock.workers.brokers import open_consumer
from penstock.workers.dispatcher.fleet.alerts import Alerts
from penstock.workers.local.up.redis_server import RedisServer

HOOKS = {"ops": {"url": "http://127.0.0.1:1/", "secret": "whsec_c2VjcmV0", "allow_networks": ["127.0.0.0/8"]}}
HOUR = timedelta(hours=1)
ALL = Selection(kind="ledger.note")


class Bench:
    """A ledger, a broker and dispatchers' judgement of one alert, `it`."""

    def __init__(self, ledger: Database, url: str, prefix: str) -> None:
        self.ledger, self.url, self.prefix = ledger, url, prefix
        self.judges: list[Alerts] = []

    def settings(self, **alert: Any) -> Settings:
        return Settings(
            broker_url=self.url,
            database_url=self.ledger.url,
            prefix=self.prefix,
            hooks=HOOKS,
            alerts={"it": {"notify": ["ops", "ann@example.com"], **alert}},
        )

    def judge(self, **alert: Any) -> Alerts:
        [judge] = Alerts.open(self.settings(**alert), self.ledger, threading.Event())
        self.judges.append(judge)
        return judge

    def firings(self) -> list[tuple[str, bool, bool]]:
        """Subject of each firing, from the first on, whether it has ended, and whether it was notified."""
        listed = reversed(read_firings(self.ledger))
        return [(firing.subject, firing.ended_at is not None, firing.notified_at is not None) for firing in listed]

    def notified(self) -> list[tuple[str, str]]:
        """Kind and type, or subject, of each notification that waits in the ledger."""
        select = sa.select(jobs.c.kind, jobs.c.payload).where(jobs.c.kind.in_(("webhook.deliver", "email.send")))
        rows = self.ledger.read(lambda connection: connection.execute(select.order_by(jobs.c.id)).all())
        payloads = [(row.kind, json.loads(row.payload)) for row in rows]
        return [(kind, payload.get("type") or payload["subject"]) for kind, payload in payloads]

    def assert_begins_and_ends(self, judge: Alerts, subject: str, mend: Callable[[], object]) -> None:
        judge.run_once()
        assert self.firings() == [(subject, False, True)]
        judge.run_once()
        mend()
        judge.run_once()
        judge.run_once()
        assert self.firings() == [(subject, True, True)]
        about = f"it ({subject})" if subject else "it"
        assert sorted(self.notified()) == [
            ("email.send", f"[{self.prefix}] alert began: {about}"),
            ("email.send", f"[{self.prefix}] alert ended: {about}"),
            ("webhook.deliver", "alert.began"),
            ("webhook.deliver", "alert.ended"),
        ]


@pytest.fixture
def url(request: pytest.FixtureRequest, redis_server: RedisServer, prefix: str) -> Iterator[str]:
    """The broker that the test names; else Redis."""
    broker = getattr(request, "param", "redis")
    yield broker_url(broker, redis_server)
    delete_queues(broker, prefix)


@pytest.fixture
def bench(ledger: Database, url: str, prefix: str) -> Iterator[Bench]:
    bench = Bench(ledger, url, prefix)
    yield bench
    for judge in bench.judges:
        judge.close()


@pytest.fixture
def producer(url: str, prefix: str, ledger: Database) -> Iterator[Producer]:
    producer = Producer(url, database_url=ledger.url, prefix=prefix)
    yield producer
    producer.close()


OLDEST: dict[str, Any] = {"when": "oldest_waiting", "above": 0.0, "queue": "notes"}
DEPTH: dict[str, Any] = {"when": "depth", "above": 2, "queue": ["no*", "other"]}
SILENT: dict[str, Any] = {"when": "silent_queue", "over": "0s"}
OF_QUEUES = [("redis", OLDEST), ("redis", DEPTH), ("redis", SILENT), ("rabbitmq", DEPTH), ("rabbitmq", SILENT)]
"""Broker and condition; how long a job waits is known of RabbitMQ by its management API alone."""


@pytest.mark.parametrize(
    ("url", "alert"), OF_QUEUES, ids=[f"{broker}-{alert['when']}" for broker, alert in OF_QUEUES], indirect=["url"]
)
def test_a_queue_in_which_jobs_wait(bench: Bench, producer: Producer, alert: dict[str, Any]) -> None:
    for _ in range(3):
        producer.enqueue(Note())

    def take_all() -> None:
        consumer = open_consumer(bench.url, ["notes"], name=f"c-{bench.prefix}", prefix=bench.prefix)
        consumer.open()
        Arrivals(consumer).wait_for(3)
        consumer.close()

    bench.assert_begins_and_ends(bench.judge(**alert), "notes", take_all)


def test_patterns_leave_other_queues_alone(bench: Bench, producer: Producer) -> None:
    producer.enqueue(Note())
    bench.judge(when="depth", above=0, queue="ticks").run_once()
    assert bench.firings() == []


def test_dead_letters_of_a_kind(bench: Bench) -> None:
    for number in range(3):
        claim = claimed(bench.ledger, message(Note(text=str(number))))
        end(bench.ledger, claim, Outcome.DEAD, reason="failed", detail="ValueError: no", error="ValueError: no")
    bench.judge(when="dead_letters", above=3).run_once()
    assert bench.firings() == []
    judge = bench.judge(when="dead_letters", above=2, kind="ledger.*")
    bench.assert_begins_and_ends(judge, "ledger.note", lambda: discard(bench.ledger, ALL, actor="a", reason="r"))


def test_dead_letters_of_a_while_only(bench: Bench) -> None:
    claim = claimed(bench.ledger, message(Note()))
    end(bench.ledger, claim, Outcome.DEAD, reason="failed", detail="ValueError: no")
    before = sa.update(dead_letters).values(created_at=datetime.now(UTC) - HOUR)
    bench.ledger.write(lambda connection: connection.execute(before))
    bench.judge(when="dead_letters", over="30m").run_once()
    assert bench.firings() == []
    bench.judge(when="dead_letters", over="2h").run_once()
    assert bench.firings() == [("ledger.note", False, True)]


def test_the_error_rate_of_a_kind(bench: Bench) -> None:
    def count(outcome: Outcome, number: int) -> None:
        ends = {("ledger.note", "notes"): number}
        bench.ledger.write(lambda connection: count_ends(connection, outcome, ends))

    count(Outcome.DEAD, 4)
    count(Outcome.SNOOZED, 1)
    judge = bench.judge(when="error_rate", above=0.4)
    judge.run_once()
    assert bench.firings() == []  # too few to be a rate
    count(Outcome.RETRY, 1)
    bench.assert_begins_and_ends(judge, "ledger.note", lambda: count(Outcome.SUCCEEDED, 9))


def test_no_dispatcher(bench: Bench) -> None:
    start_worker(bench.ledger, "w1")

    def start_dispatcher() -> None:
        kinds: dict[str, str] = {}
        queues = ["dispatcher"]
        heartbeats.register(bench.ledger, "d1", engine=heartbeats.DISPATCHER, queues=queues, kinds=kinds, lease=HOUR)

    bench.assert_begins_and_ends(bench.judge(when="no_dispatcher", over="0s"), "", start_dispatcher)


def test_a_schedule_that_is_late(bench: Bench) -> None:
    [rule] = rules(hourly=HOURLY)
    declare_schedules(bench.ledger, [rule])
    judge = bench.judge(when="schedule_late", above="5m", schedule="hour*")
    judge.run_once()
    assert bench.firings() == []
    overdue(bench.ledger, "hourly", hours=2)
    bench.assert_begins_and_ends(judge, "hourly", lambda: fire(bench.ledger, rule))


def test_a_schedule_that_missed_times(bench: Bench) -> None:
    [rule] = rules(hourly=HOURLY)
    declare_schedules(bench.ledger, [rule])
    overdue(bench.ledger, "hourly", hours=0.01)
    fire(bench.ledger, rule)
    overdue(bench.ledger, "hourly")
    fire(bench.ledger, rule)  # the last job has not ended: `overlap = "skip"`
    judge = bench.judge(when="schedule_missed", over="1h")
    late = sa.delete(firings).where(firings.c.skipped.is_not(None))
    bench.assert_begins_and_ends(
        judge, "hourly", lambda: bench.ledger.write(lambda connection: connection.execute(late))
    )


def test_the_lag_of_an_outbox(bench: Bench) -> None:
    with Session(bench.ledger.engine) as session:
        OUT.enqueue(session, Note())
        session.commit()
    before = sa.update(outbox).values(created_at=datetime.now(UTC) - HOUR)
    bench.ledger.write(lambda connection: connection.execute(before))
    judge = bench.judge(when="outbox_lag", above="1m")
    bench.assert_begins_and_ends(
        judge, "ledger", lambda: bench.ledger.write(lambda connection: connection.execute(sa.delete(outbox)))
    )


def test_a_condition_must_hold_for_a_while(bench: Bench) -> None:
    judge = bench.judge(when="no_dispatcher", over="10m")
    judge.run_once()
    [status] = read_alerts(bench.ledger, judge.settings.alerts)
    assert (status.state, bench.firings()) == ("pending", [])
    before = sa.update(alerts).values(since=datetime.now(UTC) - timedelta(minutes=11))
    bench.ledger.write(lambda connection: connection.execute(before))
    judge.run_once()
    [status] = read_alerts(bench.ledger, judge.settings.alerts)
    assert (status.state, bench.firings()) == ("firing", [("", False, True)])


def test_several_dispatchers_begin_and_end_an_alert_once(bench: Bench) -> None:
    judges = [bench.judge(when="no_dispatcher", over="0s") for _ in range(4)]

    def together() -> None:
        threads = [threading.Thread(target=judge.run_once) for judge in judges]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)

    together()
    together()
    assert (bench.firings(), len(bench.notified())) == ([("", False, True)], 2)
    heartbeats.register(bench.ledger, "d1", engine="dispatcher", queues=[], kinds={}, lease=HOUR)
    together()
    together()
    assert (bench.firings(), len(bench.notified())) == ([("", True, True)], 4)


KILLED = """
import os, signal, sys, threading
from penstock.config.settings import load_settings
from penstock.ledger.alerts import judging
from penstock.ledger.sql.database import Database
from penstock.workers.dispatcher.fleet.alerts import Alerts

enter = judging.enter
def enter_and_die(*arguments):
    enter(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "before the commit":
    judging.enter = enter_and_die
settings = load_settings(sys.argv[1])
[judge] = Alerts.open(settings, Database(settings.database_url), threading.Event())
judge.run_once()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
def test_a_dispatcher_that_is_killed_leaves_one_onset_and_one_notification(
    bench: Bench, tmp_path: Path, moment: str
) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text(
        f'broker_url = "{bench.url}"\ndatabase_url = "{bench.ledger.url}"\nprefix = "{bench.prefix}"\n'
        '[alerts.it]\nwhen = "no_dispatcher"\nover = "0s"\nnotify = "ann@example.com"\n'
    )
    died = subprocess.run([sys.executable, "-c", KILLED, str(file), moment], timeout=300)
    assert died.returncode == -9
    assert len(bench.firings()) == (moment == "after the commit")
    judge = bench.judge(when="no_dispatcher", over="0s", notify="ann@example.com")
    judge.run_once()
    assert bench.firings() == [("", False, True)]
    assert bench.notified() == [("email.send", f"[{bench.prefix}] alert began: it")]


def test_a_judgement_that_is_older_than_the_last_one_changes_nothing(bench: Bench) -> None:
    judge = bench.judge(when="no_dispatcher", over="0s")
    old = judge.conditions.judge(judge.settings.alerts)
    judge.run_once()
    heartbeats.register(bench.ledger, "d1", engine="dispatcher", queues=[], kinds={}, lease=HOUR)
    judge.run_once()
    assert judging.record(bench.ledger, bench.prefix, old) == []
    assert bench.firings() == [("", True, True)]


def test_a_silenced_alert_notifies_no_one_until_the_silence_is_over(bench: Bench) -> None:
    judge = bench.judge(when="no_dispatcher", over="0s")
    until = datetime.now(UTC) + HOUR
    silence(bench.ledger, "it", until=until, actor="ann", configured=judge.settings.alerts, reason="deploy")
    judge.run_once()
    [status] = read_alerts(bench.ledger, judge.settings.alerts)
    assert status.silence is not None
    assert (status.state, status.silence.actor, status.silence.reason) == ("firing", "ann", "deploy")
    assert (bench.firings(), bench.notified()) == ([("", False, False)], [])
    unsilence(bench.ledger, "it", actor="bob")
    judge.run_once()
    judge.run_once()
    assert (bench.firings(), len(bench.notified())) == ([("", False, True)], 2)
    acts = [(act.actor, act.act, act.subject) for act in audit.find(bench.ledger)]
    assert acts == [("bob", "unsilence", "it"), ("ann", "silence", "it")]


def test_an_alert_of_no_ones_settings_is_forgotten(bench: Bench) -> None:
    bench.judge(when="no_dispatcher", over="0s").run_once()
    before = sa.update(alerts).values(judged_at=datetime.now(UTC) - timedelta(days=2))
    bench.ledger.write(lambda connection: connection.execute(before))
    judging.forget(bench.ledger)
    assert bench.firings() == [("", True, True)]
    assert read_alerts(bench.ledger, {}) == []
    before = sa.update(alert_firings).values(ended_at=datetime.now(UTC) - timedelta(days=91))
    bench.ledger.write(lambda connection: connection.execute(before))
    judging.forget(bench.ledger)
    assert bench.firings() == []
