"""A round of the environment: a pair under a steady load, a fault for some seconds, and what came of it."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import celery
from asking import Call
from auditing import Audit, Report
from chaos_site import Site
from faults import FAULTS, Fault, missing
from misbehaving_kinds import KILLERS, WAYS, Misbehaving, Way
from own_ledgers import open_ledger, small_disk
from pairs import ServerMissing, has_postgres, has_rabbitmq, open_site
from rounds import settle
from steady_load import Progress, SteadyLoad, wait_while
from support.polling import until
from support.servers.scrape import scrape

MISBEHAVING = {"handlers": WAYS, "killers": KILLERS}
"""Faults of handlers, and their ways."""
NAMES = (*FAULTS, *MISBEHAVING)
FULL = 0.8
"""Share of the steady rate that counts as the full one."""
WINDOW_SECONDS = 2.0
"""What a rate is measured over."""
LONGEST_SECONDS = 60.0
"""A rate that is not back by then never comes back."""
COLUMNS = (
    "pair",
    "fault",
    "seed",
    "jobs",
    "before",
    "during",
    "back after",
    "ended",
    "lost",
    "repeated",
    "dead",
    "log",
)
_NO_FAULT = Fault("handlers", lambda site, ledger: ExitStack(), log="", counter="")


@dataclass(frozen=True)
class Pace:
    """How long the parts of a round are.

    Attributes:
        rate: calls a second.
        steady: seconds before the fault. fault: seconds of it.
        share: of calls whose handlers misbehave, while they do.
    """

    rate: float = 40.0
    steady: float = 6.0
    fault: float = 12.0
    share: float = 0.01


QUICK = Pace(rate=30.0, steady=4.0, fault=5.0, share=0.1)


@dataclass
class Row:
    """Result of a fault. `faults` is empty if every bar was held.

    Attributes:
        before, during: rate of ended jobs, a second.
        back_seconds: from the end of the fault until the rate is full again; None: it never was.
        ended: processes that ended by themselves, and were started again.
        dead: innocent jobs that are dead letters.
        counters: of the faults of all workers and dispatchers.
        log: whether the fault is in a log; None: nothing fails, so there is nothing to log.
    """

    pair: str
    fault: str
    seed: int
    jobs: int = 0
    before: float = 0.0
    during: float = 0.0
    back_seconds: float | None = None
    ended: int = 0
    lost: int = 0
    repeated: int = 0
    dead: int = 0
    counters: Counter[str] = field(default_factory=Counter)
    log: bool | None = None
    faults: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        back = "never" if self.back_seconds is None else f"{self.back_seconds:.1f} s"
        rates = [f"{rate:.0f}/s" for rate in (self.before, self.during)]
        counts = [str(count) for count in (self.ended, self.lost, self.repeated, self.dead)]
        log = {True: "yes", False: "no", None: "-"}[self.log]
        counters = ", ".join(f"{name} {count}" for name, count in sorted(self.counters.items())) or "-"
        return [self.pair, self.fault, str(self.seed), str(self.jobs), *rates, back, *counts, log, counters]


class EnvironmentAudit(Audit):
    """An audit that knows how the jobs of misbehaving handlers must end."""

    def innocent_dead(self, calls: Sequence[Call], promised: Container[str]) -> Counter[str]:
        """Dead letters among the jobs whose handlers behave, by kind and reason, without those of effects in doubt.

        Arguments:
            promised: reasons for which an `at_most_once` job may be one.
        """
        innocent = {call.id: call.job.kind() for call in calls if not isinstance(call.job, Misbehaving)}
        dead: Counter[str] = Counter()
        for job_id, reason in self._letters.items():
            kind = innocent.get(job_id)
            if kind is None or reason == "in_doubt" or (kind.delivery == "at_most_once" and reason in promised):
                continue
            dead[f"{kind.name} {reason}: {self._rows[job_id].error if job_id in self._rows else ''}"] += 1
        return dead

    def _judge(self, call: Call, line: object) -> None:
        if not isinstance(call.job, Misbehaving):
            super()._judge(call, line)  # type: ignore[arg-type]
            return
        way, row = (WAYS | KILLERS)[call.job.way], self._rows.get(call.id)
        if row is None or row.state != way.state or way.error not in (row.error or ""):
            end = "not on record" if row is None else f"{row.state}: {row.error}"
            self._fault(f"of {call.job.way!r} did not end as {way.state}: {way.error!r}", call.job.kind().name, end)


def one_environment_round(pair: str, name: str, seed: int, pace: Pace, folder: Path) -> Row:
    """Row of a fault.

    Arguments:
        name: of the fault.

    Raises:
        ServerMissing: something that the fault or the pair needs is not installed.
    """
    fault, ways = FAULTS.get(name, _NO_FAULT), MISBEHAVING.get(name)
    if reason := _missing(fault, pair):
        raise ServerMissing(reason)
    row = Row(pair, name, seed)
    with ExitStack() as opened:
        ledger_name = "sqlite" if fault.ledger == "postgres" and not has_postgres() else fault.ledger
        ledger = opened.enter_context(open_ledger(ledger_name, folder))
        if fault.broker_on_disk:
            opened.enter_context(small_disk(folder / "redis"))
        site = opened.enter_context(
            open_site(pair, folder, database="", ledger_url=ledger.url, own_rabbitmq=has_rabbitmq())
        )
        site.modules.append("misbehaving_kinds")
        if name == "killers":
            site.settings = site.settings.model_copy(update={"max_crashes": 3})
        fault.prepare(site)
        progress = Progress(ledger.admin_url)
        opened.callback(progress.stop)
        load = SteadyLoad(site, seed, pace.rate, sessions_in_coroutines=not ledger.url.startswith("mysql"))
        site.start()
        until(
            lambda: len(site.live_workers()) == len(site.workers), "the workers", unless=lambda: site.revive() or None
        )
        progress.start()
        load.start()
        try:
            wait_while(lambda: not progress.is_steady(pace.rate, WINDOW_SECONDS), LONGEST_SECONDS)
            time.sleep(pace.steady)
            begun = time.monotonic()
            with load.with_misbehaving(site, ways, pace.share) if ways else fault.begin(site, ledger):
                began = time.monotonic()
                while time.monotonic() < began + pace.fault:
                    row.ended += site.revive()
                    time.sleep(0.2)
            ended = time.monotonic()
            row.before = progress.rate(begun - pace.steady, begun)
            row.back_seconds = _wait_for_rate(site, progress, ended, FULL * row.before, row)
            row.during = progress.rate(begun, ended)
        finally:
            load.stop()
        calls = load.calls()
        row.jobs = len(calls)
        site.wait_for_servers()
        settle(site, calls)
        row.counters = counters(site)
        _judge(row, fault, ways, site, calls)
    return row


def _missing(fault: Fault, pair: str) -> str:
    if pair.endswith("-rabbitmq") and not has_rabbitmq():
        return "RabbitMQ is not installed: no node of the round's own"
    return missing(fault)


def _wait_for_rate(site: Site, progress: Progress, since: float, rate: float, row: Row) -> float | None:
    def is_low() -> bool:
        row.ended += site.revive()
        return progress.back_at(since, rate, WINDOW_SECONDS) is None

    wait_while(is_low, LONGEST_SECONDS)
    back_at = progress.back_at(since, rate, WINDOW_SECONDS)
    return None if back_at is None else back_at - since


def _judge(row: Row, fault: Fault, ways: Mapping[str, Way] | None, site: Site, calls: Sequence[Call]) -> None:
    report = Report(row.seed)
    audit = EnvironmentAudit(site, calls, wiped=False, frozen=False)
    audit.into(report)
    row.faults += report.faults
    row.lost = sum(line.lost for line in report.lines_of.values())
    row.repeated = sum(int(text.split()[0]) for text in report.faults if re.search(r" (repeated|charged under)", text))
    # Its handler raised an error; or its worker counts as dead.
    dead = audit.innocent_dead(calls, {"failed", "crashed"} if fault.silences_worker or ways is KILLERS else {"failed"})
    row.dead = dead.total()
    row.faults += [f"{count} innocent jobs are dead letters: {text}" for text, count in dead.items()]
    if row.back_seconds is None:
        row.faults.append(f"the rate was not back {LONGEST_SECONDS:g} s after the fault")
    logs = [log.read_text(errors="replace") for log in site.folder.glob("*.log")]
    expected = [(fault.log, fault.counter)] if ways is None else [(way.log, way.counter) for way in ways.values()]
    row.log = (
        None if not any(text for text, _ in expected) else all(any(text in log for log in logs) for text, _ in expected)
    )
    for text, counter in expected:
        if text and not any(text in log for log in logs):
            row.faults.append(f"no log has {text!r}")
        if counter and not row.counters[counter]:
            row.faults.append(f"no process counts {counter!r}")


def counters(site: Site) -> Counter[str]:
    """Counters of the live workers and dispatchers, of faults and of failed loops: of workers as any Celery client may
    ask them, of dispatchers by their metrics."""
    pids = {process.pid for process in site.workers if process is not None}
    answers: dict[int, Counter[str]] = {}

    def is_missing() -> bool:
        with (
            celery.Celery("stock", broker=site.settings.broker_url, set_as_current=False) as client,
            client.connection_for_write() as connection,
        ):
            replies = client.control.broadcast(
                "stats", connection=connection, reply=True, timeout=3, limit=len(site.workers)
            )
        for reply in replies or ():
            [stats] = reply.values()
            answers[stats["pid"]] = Counter(stats["faults"]) + Counter(stats["failures"])
        return not pids <= answers.keys()

    wait_while(is_missing, 30.0)
    assert pids <= answers.keys(), f"no answer to remote control from {pids - answers.keys()}"
    total = sum((answers[pid] for pid in pids), Counter())
    for port in site.dispatcher_ports:
        metrics = scrape(port)
        for metric, label in (("penstock_faults_total", "fault"), ("penstock_loop_restarts_total", "loop")):
            for value in metrics.labels(metric, label):
                total[value] += int(metrics.value(metric, **{label: value}))
    return total


def run_environment(
    pairs: Sequence[str], names: Sequence[str], seed: int, pace: Pace, make_folder: Callable[[], Path], quick: str
) -> list[tuple[Row, Path]]:
    """Every fault on every pair that it concerns, with a line for each. Returns the rows, with their folders."""
    rows: list[tuple[Row, Path]] = []
    logging.getLogger("penstock").addHandler(logging.NullHandler())  # the producer's warnings are not rows
    print("| " + " | ".join((*COLUMNS, "counters")) + " |\n|" + " --- |" * (len(COLUMNS) + 1), flush=True)
    for pair in pairs:
        for name in names:
            if not FAULTS.get(name, _NO_FAULT).concerns(pair):
                continue
            folder = make_folder()
            try:
                row = one_environment_round(pair, name, seed, pace, folder)
            except ServerMissing as lacking:
                print(f"| {pair} | {name} | skipped: {lacking} |", flush=True)
                continue
            rows.append((row, folder))
            print("| " + " | ".join(row.cells()) + " |", flush=True)
            for text in row.faults:
                print(f"  FAULT {text}", flush=True)
            if row.faults:
                again = f"--environment --pair {pair} --fault {name} --seed {seed}{quick}"
                print(f'  again: make chaos ARGS="{again}"\n  logs and ledger: {folder}', flush=True)
    return rows
