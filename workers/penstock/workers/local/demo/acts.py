"""The acts of the demo. Each returns rows for the table at the end."""

from __future__ import annotations

import base64
import json
import time
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from penstock.config.errors import PenstockError
from penstock.ledger.members.heartbeats import DISPATCHER
from penstock.ledger.queries import dead_letters
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import firings
from penstock.ledger.transitions import replay as replays
from penstock.producers.enqueue.producer import Producer
from penstock.producers.handles.handles import JobHandle
from penstock.schemas.builtin.reports import BuildReport
from penstock.schemas.builtin.syncs import RunSync
from penstock.schemas.builtin.uploads import ProcessUpload
from penstock.schemas.states import State
from penstock.workers.local.demo import checks
from penstock.workers.local.demo.checks import CheckFailed, expect
from penstock.workers.local.demo.mails import DELAY, GONE, LATER, Mails, welcome
from penstock.workers.local.demo.narrator import Narrator, Row
from penstock.workers.local.demo.nightly import OFFICE, Nightly
from penstock.workers.local.demo.work import Work, follow
from penstock.workers.local.demo.world.customers_api import PAGE, RECORDS
from penstock.workers.local.demo.world.stage import EVERY_SECONDS, PDF, PHOTO, Stage
from penstock.workers.local.up.signals import Stopping

CHANGED = 37
ACT_SECONDS = 90.0
MAILS, CUSTOMERS, DEAD_LETTERS = "mailbox", "customers.db", "penstock deadletters list"


class Acts:
    def __init__(
        self, narrator: Narrator, stage: Stage, producer: Producer, database: Database, stopping: Stopping
    ) -> None:
        self._narrator, self._stage, self._producer, self._database = narrator, stage, producer, database
        self._stopping = stopping
        self._mails = Mails(stage.mailbox)
        self._refused: JobHandle | None = None

    def work(self) -> list[Row]:
        """Uploads, reports, a sync and mails, all at once."""
        stage, enqueue = self._stage, self._producer.enqueue
        stage.mailbox.refused.add(GONE)
        delayed_at = datetime.now(UTC)
        delayed = enqueue(welcome("Later", LATER), delay=DELAY)
        self._refused = enqueue(welcome("Gone", GONE))
        return self._follow(
            Work("photo", [enqueue(ProcessUpload(key=PHOTO))], self._of(checks.check_photo), "storage/uploads"),
            Work("PDF", [enqueue(ProcessUpload(key=PDF))], self._of(checks.check_pdf), "storage/uploads"),
            Work("report, CSV", [enqueue(_orders("csv"))], self._of(checks.check_csv), "storage/reports"),
            Work("report, XLSX", [enqueue(_orders("xlsx"))], self._of(checks.check_xlsx), "storage/reports"),
            Work("first sync", [enqueue(RunSync(sync="customers"))], self._check_first_sync, CUSTOMERS),
            Work("mails", self._mails.send(self._producer), self._mails.check, MAILS),
            Work(
                f"mail, {DELAY.total_seconds():.0f} s later",
                [delayed],
                lambda results: self._mails.check_delayed(delayed_at, results),
                MAILS,
            ),
            Work("refused mail", [self._refused], self._check_dead, DEAD_LETTERS, State.DEAD),
        )

    def recover(self) -> list[Row]:
        """Replay the dead letter, and sync the records that have changed since."""
        assert self._refused is not None
        rows = dead_letters.find(self._database)
        for dead_letter in rows:
            self._narrator.line(f"dead letter {dead_letter.id}: {dead_letter.kind}: {dead_letter.detail}")
        self._stage.mailbox.refused.clear()
        replayed_at = datetime.now(UTC)
        try:
            replays.replay_one(self._database, self._refused.id, actor="penstock demo")
        except PenstockError as error:
            return [Row("replayed mail", "", "", None, DEAD_LETTERS, str(error))]
        changed = self._stage.api.change(CHANGED)
        self._narrator.line(
            f"the mail server now accepts {GONE}, and {CHANGED} of {RECORDS:,} records have changed in the API"
        )
        sync = self._producer.enqueue(RunSync(sync="customers"))
        files = f"file://{self._stage.folder}/storage"
        nightly = self._producer.enqueue(Nightly(orders=f"{self._stage.folder}/orders.db", files=files), delay=DELAY)
        return self._follow(
            Work("replayed mail", [self._refused], self._mails.check_replayed, MAILS, since=replayed_at),
            Work(
                "second sync",
                [sync],
                lambda results: self._check_second_sync(changed, results[0]),
                CUSTOMERS,
            ),
            Work("workflow: sync, reports, mail", [nightly], self._check_nightly, "penstock workflows show"),
        )

    def schedule(self) -> Row:
        """The schedule fired, each time once, and its jobs ended well."""
        what, where = "schedule, every 5 s", "penstock schedules list"
        select = sa.select(firings).where(firings.c.schedule == "towns", firings.c.job_id.is_not(None))
        fired = self._database.read(lambda connection: connection.execute(select.order_by(firings.c.fire_at)).all())
        work = Work(
            what,
            [self._producer.handle(firing.job_id, "report.build", "reports") for firing in fired],
            lambda results: self._check_firings([firing.fire_at for firing in fired], results),
            where,
            timed=False,
        )
        if len(fired) < 2:
            return Row(what, "", "", None, where, f"it fired {len(fired)} times in {self._narrator.seconds:.0f} s")
        return self._follow(work)[0]

    def flower(self) -> Row:
        """Flower shows the workers of both engines."""
        layout, problem, names = self._stage.layout, None, ""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                online = _flower_workers(layout.flower_url, layout.flower_auth)
                names = ", ".join(sorted({name.partition("@")[0] for name in online}))
                expect({"celery", "dramatiq"} <= set(names.split(", ")), f"Flower shows only: {names or 'no worker'}")
                problem = None
                break
            except (CheckFailed, OSError, ValueError, LookupError, TypeError) as error:
                problem = str(error)
                self._stopping.pause(0.5)
        row = Row("Flower", "", f"workers online: {names}", None, layout.flower_url, problem)
        self._narrator.finished(row)
        return row

    def metrics(self) -> Row:
        """Each worker and the dispatcher is live and ready, and the workers have counted the jobs."""
        ports, problem, attempts = self._stage.layout.http_ports, None, 0
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                for port in ports.values():
                    for path in ("/live", "/ready"):
                        _page(port, path)
                texts = {service: _page(port, "/metrics") for service, port in ports.items()}
                attempts = sum(map(_attempts, texts.values()))
                idle = [name for name, text in texts.items() if name.startswith("worker") and not _attempts(text)]
                expect(not idle, f"{', '.join(idle)} has counted no job")
                problem = None
                break
            except (CheckFailed, OSError) as error:
                problem = str(error)
                self._stopping.pause(0.5)
        where = ", ".join(f"http://127.0.0.1:{port}/metrics" for port in ports.values())
        count = f"{len(ports)} processes are live and ready; {attempts} attempts counted"
        row = Row("metrics and probes", "", count, None, where, problem)
        self._narrator.finished(row)
        return row

    def _follow(self, *tasks: Work) -> list[Row]:
        return follow(self._narrator, self._database, tasks, ACT_SECONDS, self._stopping)

    def _of(self, check: Callable[[Stage, dict[str, Any]], str]) -> Callable[[Sequence[Any]], str]:
        return lambda results: check(self._stage, results[0])

    def _check_first_sync(self, results: Sequence[dict[str, Any]]) -> str:
        (result,) = results
        pages = RECORDS // PAGE
        expect((result["inserted"], result["pages"]) == (RECORDS, pages), f"the result is {result}")
        checks.check_customers(self._stage)
        answers = self._stage.api.answers
        expect(answers[429] >= 1 and answers[503] >= 1, f"the API answered {dict(answers)}")
        return f"{result['inserted']:,} records, {answers[429]} × 429, {answers[503]} × 503"

    def _check_second_sync(self, changed: set[int], result: dict[str, Any]) -> str:
        expect(
            (result["fetched"], result["updated"], result["inserted"]) == (len(changed), len(changed), 0),
            f"the result is {result}",
        )
        checks.check_customers(self._stage)
        return f"{result['fetched']} changed records"

    def _check_nightly(self, results: Sequence[dict[str, Any]]) -> str:
        mails = self._stage.mailbox.received(OFFICE)
        expect(len(mails) == 1, f"the office got {len(mails)} mails")
        expect(mails[0].message["Message-ID"] == results[0]["message_id"], "the mail is not that of the last step")
        count = checks.check_links(self._stage, mails[0].message)
        return f"{count} reports linked in 1 mail"

    def _check_dead(self, _results: Sequence[Any]) -> str:
        assert self._refused is not None
        dead_letter = dead_letters.show(self._database, self._refused.id).row
        expect(
            "550" in dead_letter.detail and dead_letter.replayed_at is None,
            f"its dead letter reports {dead_letter.detail!r}",
        )
        expect(self._stage.mailbox.refusals == 1, f"the server refused it {self._stage.mailbox.refusals} times")
        expect(not self._stage.mailbox.received(GONE), "the server received the mail that it refused")
        return "1 dead letter, after 1 attempt"

    def _check_firings(self, times: Sequence[datetime], results: Sequence[dict[str, Any]]) -> str:
        for fire_at, result in zip(times, results, strict=True):
            expect(fire_at.second % EVERY_SECONDS == 0 and fire_at.microsecond == 0, f"it fired for {fire_at}")
            checks.check_towns(self._stage, result)
        expect(len({result["key"] for result in results}) == len(times), "two firings made the same report")
        return f"fired {len(times)} times"


def _orders(format: str) -> BuildReport:
    return BuildReport.model_validate({"report": "orders", "format": format})


def _page(port: int, path: str) -> str:
    """A page of a worker or dispatcher of ours. Raises OSError: it is not 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def _attempts(metrics: str) -> int:
    """The attempts that a process has counted, by its `/metrics`."""
    lines = [line for line in metrics.splitlines() if line.startswith("penstock_jobs_total{")]
    return round(sum(float(line.rpartition(" ")[2]) for line in lines))


def _flower_workers(url: str, auth: str) -> list[str]:
    """The names of the workers that Flower shows as online."""
    request = urllib.request.Request(f"{url}/api/penstock/workers")  # noqa: S310  # our own Flower
    request.add_header("Authorization", "Basic " + base64.b64encode(auth.encode()).decode())
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        document = json.load(answer)
    online = [worker for worker in document["workers"] if worker["state"] == "running"]
    return [worker["name"] for worker in online if worker["engine"] != DISPATCHER]
