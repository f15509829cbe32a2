"""A round of the outbox: backends, dispatchers and the broker are killed in the middle of transactions and of what
leaves after them, and the count of the jobs that ran against the rows that were committed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import astuple, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from breaking import Breaker
from chaos_jobs import QUEUE
from chaos_outbox_backend import ACCOUNTS, ORDERED_QUEUE, Account, Base, Order
from chaos_site import FOLDERS, HERE, Site, running_postgres
from support.polling import SETTLE_SECONDS
from support.servers.databases import run
from support.servers.killable_redis import running_redis

from penstock.config.errors import PenstockError
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import outbox
from penstock.producers.outbox import create_outbox
from penstock.producers.senders.redis.sender import lane_key
from penstock.schemas.states import State

BACKENDS = ("sqlalchemy", "django")
NUMBERS = 1_000_000
"""A backend's process writes fewer orders."""
FIRST = ("kill_backend", "kill_dispatcher", "kill_redis")
SHOWN = 5


@dataclass
class Line:
    """A row of the table, of a kind.

    Attributes:
        written: jobs in transactions that were started. rolled_back: on purpose, alone or with their transaction.
        cut_off: with a backend that was killed, or lost its database, before it committed.
        ran, again, lost: of the committed ones: with an effect, effects beyond a job's first, without one.
        strange: jobs that are sent, on record or run, and that were never committed.
    """

    written: int = 0
    rolled_back: int = 0
    cut_off: int = 0
    committed: int = 0
    ran: int = 0
    again: int = 0
    lost: int = 0
    strange: int = 0


@dataclass
class OutboxReport:
    """Result of a round. `faults` is empty if every promise was kept.

    Attributes:
        ordered: jobs with a key, whose order in the broker was compared with that of their commits.
    """

    seed: int
    lines_of: dict[str, Line] = field(default_factory=lambda: defaultdict(Line))
    ordered: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def total(self) -> Line:
        return Line(*map(sum, zip(*map(astuple, self.lines_of.values()), strict=True)))

    def lines(self) -> list[str]:
        rows = [f"  seed {self.seed:<23}" + "".join(f"{field.name.replace('_', ' '):>12}" for field in fields(Line))]
        for kind, line in [*sorted(self.lines_of.items()), ("all", self.total)]:
            rows.append(f"  {kind:<28}" + "".join(f"{count:>12,}" for count in astuple(line)))
        rows.append(f"  {self.ordered:,} with a key, in the broker in the order of their commits or named below")
        rows.append("  " + ", ".join(f"{name} x{count}" for name, count in sorted(self.broken.items())))
        return rows + [f"  FAULT {fault}" for fault in self.faults]

    def fault(self, what: str, jobs: list[Any]) -> None:
        if jobs:
            self.faults.append(f"{len(jobs)} {what}: {', '.join(map(str, jobs[:SHOWN]))}")


class OutboxSite(Site):
    """Backends in addition to the rest, with two databases: a shop's own, and the ledger's.

    Arguments:
        shop_url: an empty database.
        pause: seconds that a backend rests after a transaction, on average.
    """

    def __init__(self, folder: Path, *, shop_url: str, seed: int, pause: float, **servers: Any) -> None:
        prefix = f"c{uuid.uuid4().hex[:10]}"
        (folder / "penstock.toml").write_text(f"outbox_urls = [{json.dumps(shop_url)}]\n")
        super().__init__("dramatiq", folder, prefix, workers=1, **servers)
        self.shops = [self.database, Database(shop_url)]
        for shop in self.shops:
            Base.metadata.create_all(shop.engine)
            create_outbox(shop.engine)
            accounts = [{"id": number, "turn": 0} for number in range(ACCOUNTS)]
            shop.write(lambda connection: connection.execute(sa.insert(Account), accounts))  # noqa: B023
        self.journal = folder / "journal"
        self.backends: list[subprocess.Popen[bytes] | None] = [None] * len(BACKENDS)
        self._seed, self._pause = seed, pause

    def start_worker(self, slot: int) -> None:
        """The second, which has the jobs with a key, is started when all is repaired."""
        queue = (QUEUE, ORDERED_QUEUE)[slot]
        command = ["worker", "--engine", self.engine, "--queues", queue, "--concurrency", "30"]
        self.workers[slot] = self._run([*command, "--import", "chaos_jobs"])

    def start(self) -> None:
        super().start()
        for slot in range(len(BACKENDS)):
            self.start_backend(slot)

    def start_backend(self, slot: int) -> None:
        self._started += 1
        arguments = [BACKENDS[slot], self._seed, self._started * NUMBERS, self._pause, self.journal]
        command = [sys.executable, Path(__file__).parent / "chaos_outbox_backend.py", *map(str, arguments)]
        paths = [*map(str, FOLDERS), str(HERE.parent), str(HERE.parent / "producers/frameworks")]
        with (self.folder / f"{self._started:03d}-{BACKENDS[slot]}.log").open("wb") as log:
            self.backends[slot] = subprocess.Popen(
                [*command, *(shop.url for shop in self.shops)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_backend(self, slot: int) -> None:
        process = self.backends[slot]
        if process is not None:
            process.kill()
            process.wait()

    def revive(self) -> None:
        """A backend that lost its database ends, too."""
        super().revive()
        for slot, process in enumerate(self.backends):
            if process is not None and process.poll() is not None:
                self.start_backend(slot)

    def stop_backends(self) -> None:
        """SIGKILL in the middle of a transaction."""
        for slot in range(len(BACKENDS)):
            self.kill_backend(slot)
        self.backends = [None] * len(BACKENDS)

    def stop(self) -> None:
        self.stop_backends()
        super().stop()
        self.shops[1].close()

    def orders(self) -> list[Any]:
        """The committed rows of both databases, each with its number."""
        select = sa.select(Order.number, Order.job_id, Order.kind, Order.account, Order.turn)
        return [
            (number, row)
            for number, shop in enumerate(self.shops)
            for row in shop.read(lambda connection: connection.execute(select).all())
        ]

    def committed(self) -> int:
        select = sa.select(sa.func.count()).select_from(Order)
        return sum(shop.read(lambda c: c.execute(select).scalar_one()) for shop in self.shops)

    def waiting(self) -> int:
        select = sa.select(sa.func.count()).select_from(outbox)
        return sum(shop.read(lambda c: c.execute(select).scalar_one()) for shop in self.shops)

    def sent_in_order(self) -> list[str]:
        """The ids of the jobs with a key as the broker has them, each where it came first."""
        from redis import Redis

        with Redis.from_url(self.settings.broker_url) as client:
            entries: Any = client.xrange(lane_key(self.settings.prefix, ORDERED_QUEUE, "normal"))
        return list(dict.fromkeys(json.loads(entry[b"h"])["id"] for _, entry in entries))


class OutboxBreaker(Breaker):
    """Breaks everything between a transaction and the broker."""

    site: OutboxSite

    def __init__(self, site: OutboxSite, seed: int) -> None:
        super().__init__(site, seed, pause=(0.2, 1.2), first=FIRST)
        self._acts = [
            (self.kill_backend, 4),
            (self.kill_dispatcher, 4),
            (self.freeze_dispatcher, 1),
            (self.kill_redis, 3),
            (self.kill_redis_and_dispatcher, 1),
        ]
        if site.postgres is not None:
            self._acts += [(self.kill_database, 1), (self.kill_postmaster, 1)]

    def kill_backend(self) -> None:
        slot = self._random.randrange(len(BACKENDS))
        self.site.kill_backend(slot)
        self.site.start_backend(slot)
        self._sleep(0.2, 1.5)  # it needs a second to start; killing it before says little

    def kill_redis_and_dispatcher(self) -> None:
        self._redis.kill()
        self._sleep(0, 0.5)
        self.kill_dispatcher()
        self._sleep(0, 1.0)
        self._redis.start()


def one_outbox_round(
    seed: int,
    jobs_asked: int,
    folder: Path,
    *,
    database: str = "sqlite",
    ledger_url: str | None = None,
    shop_url: str | None = None,
    seconds: float = 30.0,
) -> OutboxReport:
    """Commit jobs while things break for at least `seconds`, with a Redis of its own.

    Arguments:
        jobs_asked: of a round of a pair; here at least half as many are committed.
        database, ledger_url: as of a round of a pair.
        shop_url: the other database; None: next to the ledger where PostgreSQL is the round's own, else SQLite.
    """
    report, began, count = OutboxReport(seed), time.monotonic(), jobs_asked // 2
    with ExitStack() as opened:
        redis = opened.enter_context(running_redis(folder))
        postgres = None
        if database == "postgres" and ledger_url is None:
            postgres = opened.enter_context(running_postgres())
            shop_url = shop_url or _another_database(postgres.url)
        site = OutboxSite(
            folder,
            shop_url=shop_url or f"sqlite:///{folder}/shop.db",
            seed=seed,
            pause=seconds / count,
            broker_url=redis.url,
            broker_server=redis,
            postgres=postgres,
            ledger_url=ledger_url,
        )
        opened.callback(site.stop)
        site.start()
        # Killing a process before it has started proves little.
        _wait(site, lambda: bool(site.traces()))
        _break(site, seed, count, seconds, report)
        site.wait_for_servers()
        _wait(site, lambda: not site.waiting())
        orders = site.orders()
        _audit_order(orders, site.sent_in_order(), report)
        site.workers.append(None)
        site.start_worker(1)
        _wait(site, lambda: not site.unfinished() and _have_run(site) >= {row.number for _, row in orders})
        time.sleep(1.0)  # a duplicate on its way would come now
        _audit(site, orders, report)
    report.seconds = time.monotonic() - began
    return report


def _another_database(url: str) -> str:
    run(url, "CREATE DATABASE shop")
    return sa.make_url(url).set(database="shop").render_as_string(hide_password=False)


def _break(site: OutboxSite, seed: int, count: int, seconds: float, report: OutboxReport) -> None:
    breaker = OutboxBreaker(site, seed)
    began = time.monotonic()
    breaker.start()
    try:
        while breaker.error is None:
            lasted = time.monotonic() - began
            with suppress(PenstockError):  # its server may just be down
                if lasted > seconds and set(FIRST) <= set(breaker.done) and site.committed() >= count:
                    break
            if lasted > seconds + SETTLE_SECONDS:
                report.faults.append(f"less than {count} jobs were committed")
                break
            time.sleep(0.05)
    finally:
        breaker.stop()
        site.stop_backends()
    report.broken = breaker.done


def _wait(site: OutboxSite, condition: Callable[[], bool]) -> None:
    """Until the condition holds, or for as long as it may take; the audit says what is missing then."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline and not condition():
        site.revive()
        time.sleep(0.2)


def _have_run(site: OutboxSite) -> set[int]:
    return {*site.traces(), *site.effects()}


def _audit_order(orders: list[Any], sent: list[str], report: OutboxReport) -> None:
    place = {job_id: number for number, job_id in enumerate(sent)}
    keyed = {row.job_id: (shop, row.account, row.turn) for shop, row in orders if row.account is not None}
    turns: dict[tuple[int, int], list[str]] = defaultdict(list)
    for job_id, (shop, account, _) in sorted(keyed.items(), key=lambda item: item[1]):
        turns[shop, account].append(job_id)
    report.fault("with a key were not sent", [job_id for job_id in keyed if job_id not in place])
    report.fault("with a key were sent and not committed", [job_id for job_id in sent if job_id not in keyed])
    early = [
        f"{job_id} (database {shop}, account {account}, after {before})"
        for (shop, account), ids in turns.items()
        for before, job_id in pairwise(ids)
        if before in place and job_id in place and place[job_id] < place[before]
    ]
    report.fault("were sent before an earlier one of their key", early)


def _audit(site: OutboxSite, orders: list[Any], report: OutboxReport) -> None:
    committed = {row.number: row for _, row in orders}
    traces, effects, rows = site.traces(), site.effects(), site.rows()
    recorded = {json.loads(row.payload)["number"] for row in rows.values()}
    report.ordered = sum(row.account is not None for row in committed.values())
    strange = []
    for text, kind, fate in map(str.split, site.journal.read_text().splitlines()):
        number, line = int(text), report.lines_of[kind]
        line.written += 1
        if number in committed:
            line.committed += 1
            if fate != "commit":
                report.faults.append(f"the backend has committed {number}, which was to be undone: {fate}")
            continue
        if fate == "commit":
            line.cut_off += 1
        else:
            line.rolled_back += 1
        if number in traces or number in effects or number in recorded:
            line.strange += 1
            strange.append(f"{number} ({kind}, {fate})")
    twice, lost, unfinished, other = [], [], [], []
    for number, row in committed.items():
        line, once = report.lines_of[row.kind], "once" in row.kind
        runs = effects[number] if once else len(traces.get(number, ()))
        line.ran += runs > 0
        line.again += max(runs - 1, 0)
        if runs == 0:
            line.lost += 1
            lost.append(row.job_id)
        if once and runs > 1:
            twice.append(row.job_id)
        if set(traces.get(number, ())) - {row.job_id}:
            other.append(number)
        if "untracked" not in row.kind and (row.job_id not in rows or rows[row.job_id].state != State.SUCCEEDED):
            unfinished.append(row.job_id)
    report.fault("ran or are on record, and were never committed", strange)
    report.fault("were committed and did not run", lost)
    report.fault("of `once` had their effect more than once", twice)
    report.fault("tracked ones have not succeeded on record", unfinished)
    report.fault("ran under another id than their handle had", other)
    report.fault("are dead letters", sorted(site.letters().items()))
    if left := site.waiting():
        report.faults.append(f"{left} are still in the outboxes")
