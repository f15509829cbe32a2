"""An outage of the ledger ends the leases of all, and those who lived get new ones from the first write on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import Note, Pay, Ring, claimed, let_leases_run, message, row_of
from support.ledgers import start_worker as start
from support.polling import until

from penstock.config.errors import InvalidState
from penstock.config.sections.alerts import AlertSettings
from penstock.config.settings import Settings
from penstock.ledger.alerts.conditions import Conditions
from penstock.ledger.members import heartbeats, leases
from penstock.ledger.members.heartbeats import DISPATCHER
from penstock.ledger.members.leases import await_renewal
from penstock.ledger.members.orders import give_order
from penstock.ledger.members.overview import read_member, read_members
from penstock.ledger.queries.fleet_metrics import FleetMetrics
from penstock.ledger.sql.clock import from_now
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import workers
from penstock.ledger.transitions import due
from penstock.ledger.transitions.abandoned import bury_abandoned, bury_dropped
from penstock.ledger.transitions.claim import Claim, ClaimRequest, claim
from penstock.ledger.transitions.lost import put_back_running
from penstock.producers.explain import explain
from penstock.schemas import Job, State
from penstock.schemas.wire.codec import encode
from penstock.workers.fleet.queues import Fleet
from penstock.workers.telemetry.operation import review_operation

LEASE = timedelta(hours=1)
"""So that no real time counts: a test lets it pass."""
SECONDS = LEASE.total_seconds()


def start_worker(ledger: Database, name: str) -> None:
    start(ledger, name, lease=LEASE)


def live(ledger: Database) -> set[str]:
    alive = sa.select(workers.c.name).where(workers.c.lease_until > from_now(), workers.c.stopped_at.is_(None))
    return ledger.read(lambda connection: set(connection.scalars(alive)))


def beat(ledger: Database, name: str) -> None:
    heartbeats.beat(ledger, name, lease=LEASE)


def buries(ledger: Database, job_id: str) -> bool:
    return bool(bury_abandoned(ledger, lease=LEASE))


def puts_back(ledger: Database, job_id: str) -> bool:
    return bool(put_back_running(ledger, timedelta(), ("notes", "normal"), lease=LEASE))


def drops(ledger: Database, job_id: str) -> bool:
    return bool(bury_dropped(ledger, encode(Note(), id=job_id), b"", "dropped", lease=LEASE))


def claims(ledger: Database, job_id: str) -> bool:
    request = ClaimRequest(message(Pay(amount=1), id=job_id), True, 3)
    [answer] = claim(ledger, [request], worker="w2", lease=LEASE)
    return isinstance(answer, Claim)


def holds(ledger: Database, job_id: str) -> bool:
    envelope = encode(Pay(amount=1), id=job_id)
    request = due.HoldRequest(due.waiting(envelope), 0, True, "unknown_kind", "no module defines it")
    [answer] = due.hold_back(ledger, [request], worker="w2", grace=LEASE, lease=LEASE)
    return answer == "held"


@pytest.mark.parametrize(
    ("judge", "job"),
    [(buries, Ring(number="1")), (puts_back, Note()), (drops, Note()), (claims, Pay(amount=1)), (holds, Pay(amount=1))],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("leases", [0.9, 40])
def test_no_judge_takes_an_outage_for_the_death_of_a_worker(
    ledger: Database, judge: Callable[[Database, str], bool], job: Job, leases: float
) -> None:
    """The judge is the first to write after it, and sees nothing but the ledger."""
    start_worker(ledger, "w1")
    start_worker(ledger, "w2")
    let_leases_run(ledger, 0.2 * SECONDS)
    beat(ledger, "w2")
    sent = message(job)
    claimed(ledger, sent, worker="w1")
    let_leases_run(ledger, leases * SECONDS)  # that of w1 has ended in either case
    assert not judge(ledger, sent.id)
    assert row_of(ledger, sent.id).state == State.RUNNING
    assert live(ledger) == {"w1", "w2"}
    # From then on w2 renews its lease, and w1 does not.
    for _ in range(4):
        assert not judge(ledger, sent.id)
        let_leases_run(ledger, 0.3 * SECONDS)
        beat(ledger, "w2")
    assert judge(ledger, sent.id)


@pytest.mark.parametrize("writer", ["a worker", "a dispatcher", "one that starts"])
def test_whichever_member_writes_first_gives_new_leases_to_those_who_lived(ledger: Database, writer: str) -> None:
    for name in ("alive", "dead", "seen to end", "stopped", "d1"):
        start_worker(ledger, name)
    heartbeats.sign_off(ledger, "stopped")
    for _ in range(4):
        let_leases_run(ledger, 0.3 * SECONDS)
        for name in ("alive", "seen to end", "d1"):
            beat(ledger, name)
    ended = sa.update(workers).where(workers.c.name == "seen to end").values(ended="SIGKILL")
    ledger.write(lambda connection: connection.execute(ended))
    let_leases_run(ledger, 30 * SECONDS)
    assert live(ledger) == set()
    if writer == "one that starts":
        heartbeats.register(ledger, "d2", engine=DISPATCHER, queues=[], kinds={}, lease=LEASE)
    else:
        beat(ledger, "alive" if writer == "a worker" else "d1")
    assert live(ledger) - {"d2"} == {"alive", "d1"}


def test_a_member_that_alone_was_silent_gives_no_new_leases(ledger: Database) -> None:
    for name in ("frozen", "dead", "alive"):
        start_worker(ledger, name)
    for _ in range(4):
        let_leases_run(ledger, 0.3 * SECONDS)
        beat(ledger, "alive")
    beat(ledger, "frozen")
    assert live(ledger) == {"frozen", "alive"}


def test_explanations_and_the_doctor_wait_for_the_first_write_after_an_outage(ledger: Database) -> None:
    lease = timedelta(minutes=1)
    start(ledger, "w1", lease=lease)
    heartbeats.register(ledger, "d1", engine=DISPATCHER, queues=[], kinds={}, lease=lease)
    sent = message(Note())
    claimed(ledger, sent, worker="w1")
    settings = Settings(database_url=ledger.url, lease_seconds=lease.total_seconds())

    def dispatchers() -> str:
        return next(finding.level for finding in review_operation(settings, ledger) if finding.check == "dispatchers")

    for read, otherwise, right in [
        (lambda: explain(ledger, sent.id, lease=lease).because[:9], "worker w1", "it runs s"),
        (dispatchers, "FAIL", "OK"),
    ]:
        let_leases_run(ledger, 10 * lease.total_seconds())
        assert read() == otherwise, "no one writes"
        let_leases_run(ledger, lease.total_seconds())  # another outage
        writer = threading.Timer(0.2, lambda: heartbeats.beat(ledger, "d1", lease=lease))
        writer.start()
        assert read() == right
        writer.join()


def test_a_reader_with_another_lease_than_the_members_does_not_wait_for_ever(ledger: Database) -> None:
    """To it, a renewal looks like the last one before a silence."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(0.01):
            heartbeats.beat(ledger, "w1", lease=LEASE / 4)

    start(ledger, "w1", lease=LEASE / 4)
    writer = threading.Thread(target=renew)
    writer.start()
    try:
        await_renewal(ledger, LEASE)
    finally:
        over.set()
        writer.join()
    assert read_members(ledger, LEASE)[0].member.name == "w1"


class Backlogs:
    """Three jobs wait in a queue of the broker."""

    def read(self, queues: Collection[str]) -> dict[str, tuple[int, float | None]]:
        return {"notes": (3, 1.0)}

    def close(self) -> None: ...


def on_the_page_of_workers(ledger: Database, settings: Settings) -> list[bool]:
    return [status.state == "running" for status in read_members(ledger, settings.lease)]


def on_the_page_of_one(ledger: Database, settings: Settings) -> list[bool]:
    states = [read_member(ledger, name, settings.lease) for name in ("w1", "d1")]
    return [status is not None and status.state == "running" for status in states]


def on_the_page_of_queues(ledger: Database, settings: Settings) -> list[bool]:
    roster = Fleet.read(ledger, settings.lease).roster
    return [bool(roster.consuming("notes")), bool(roster.dispatchers)]


def to_alerts(ledger: Database, settings: Settings) -> list[bool]:
    conditions = Conditions(settings, ledger, Backlogs)
    alerts = {when: AlertSettings(when=when) for when in ("silent_queue", "no_dispatcher")}
    return [not judgement.holding for judgement in conditions.judge(alerts)]


def to_metrics(ledger: Database, settings: Settings) -> list[bool]:
    samples = {(name, labels): value for name, labels, value in FleetMetrics(settings, ledger, Backlogs())._workers()}
    return [samples.get(("penstock_workers", ("inline",)), 0) == 1, samples["penstock_dispatchers", ()] == 1]


def to_orders(ledger: Database, settings: Settings) -> list[bool]:
    alive = []
    for name in ("w1", "d1"):
        try:
            give_order(ledger, name, "drain", actor="ann", lease=settings.lease)
        except InvalidState as error:
            alive.append("already" in str(error) and "ended" not in str(error))
        else:
            alive.append(True)
    return alive


Reader = Callable[[Database, Settings], list[bool]]
MINUTE = timedelta(minutes=1)
READERS = pytest.mark.parametrize(
    "reader",
    [on_the_page_of_workers, on_the_page_of_one, on_the_page_of_queues, to_alerts, to_metrics, to_orders],
    ids=lambda reader: reader.__name__,
)


@pytest.fixture
def settings(ledger: Database) -> Settings:
    """An installation with a worker and a dispatcher."""
    start(ledger, "w1", lease=MINUTE)
    heartbeats.register(ledger, "d1", engine=DISPATCHER, queues=[], kinds={}, lease=MINUTE)
    return Settings(database_url=ledger.url, lease_seconds=60)


@READERS
def test_right_after_an_outage_of_two_leases_no_reader_takes_members_for_dead(
    ledger: Database, settings: Settings, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_MOMENT_SECONDS", 1e9)  # however busy this machine is
    let_leases_run(ledger, 120)
    assert reader(ledger, settings) == [True, True]
    heartbeats.beat(ledger, "d1", lease=MINUTE)
    assert reader(ledger, settings) == [True, True], "with new leases"


@READERS
def test_a_worker_that_died_alone_is_dead_when_its_lease_has_ended(
    ledger: Database, settings: Settings, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_MOMENT_SECONDS", 1e9)
    for _ in range(3):
        assert reader(ledger, settings) == [True, True]
        let_leases_run(ledger, 20)
        heartbeats.beat(ledger, "d1", lease=MINUTE)
    alive = reader(ledger, settings)
    assert sorted(alive) == [False, True], alive


@READERS
def test_members_that_all_died_are_dead_two_seconds_after_the_first_look(
    ledger: Database, settings: Settings, reader: Reader
) -> None:
    let_leases_run(ledger, 120)
    first_look = time.monotonic()
    reader(ledger, settings)
    until(lambda: reader(ledger, settings) == [False, False])
    assert time.monotonic() - first_look >= leases._MOMENT_SECONDS


def test_a_reader_that_has_waited_judges_by_the_clock_even_if_its_first_look_took_long(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_MOMENT_SECONDS", 0.5)
    start(ledger, "dead", lease=MINUTE)
    let_leases_run(ledger, 120)
    read = ledger.read

    def connect_and_read(query: Callable[[sa.Connection], Any]) -> Any:
        monkeypatch.setattr(ledger, "read", read)
        time.sleep(0.4)
        return read(query)

    monkeypatch.setattr(ledger, "read", connect_and_read)
    await_renewal(ledger, MINUTE)
    now, judged_at = read(lambda connection: leases._judge(connection, MINUTE))
    assert judged_at == now


def test_readers_do_not_wait_for_members_that_died_long_ago_or_at_other_times(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_MOMENT_SECONDS", 1e9)
    lease = timedelta(minutes=1)
    await_renewal(ledger, lease)
    start(ledger, "dead", lease=lease)
    let_leases_run(ledger, 2 * 3600)
    await_renewal(ledger, lease)
    let_leases_run(ledger, -2 * 3600 + 600)
    start(ledger, "alive", lease=lease)
    await_renewal(ledger, lease)
