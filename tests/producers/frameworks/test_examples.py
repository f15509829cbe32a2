"""Each framework's example over HTTP, with its real server, a worker and a dispatcher."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sites import BIN, EXAMPLES, FRAMEWORKS, SECRET, Site, environment, running
from support.ledgers import upgraded
from support.polling import WAIT_SECONDS, until

from penstock.config.settings import Settings
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, outbox
from penstock.ledger.sql.upgrade import upgrade
from penstock.producers.tokens import progress_token
from penstock.workers.local.up.redis_server import RedisServer, free_port

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Stack:
    """A worker and a dispatcher for all frameworks' shops."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.folder = folder
        self.shops = {name: folder / f"{name}.db" for name in FRAMEWORKS}
        self.settings = Settings(
            broker_url=redis_url,
            database_url=f"sqlite:///{folder}/ledger.db",
            storage_url=f"file:{folder}/storage",
            smtp_url=f"maildir:{folder}/mail",
            prefix=f"t{uuid.uuid4().hex[:10]}",
            outbox_urls=tuple(f"sqlite:///{shop}" for shop in self.shops.values()),
            stock_queues=(),
        )
        self.ledger = Database(upgraded(self.settings.database_url))
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        worker = ["worker", "--engine", "dramatiq", "--queues", "invoices", "--concurrency", "4"]
        for command in (worker, ["dispatcher"]):
            with (self.folder / f"{command[0]}.log").open("wb") as log:
                self._processes.append(
                    subprocess.Popen(
                        [BIN / "penstock", *command, "--import", "acme.handlers"],
                        cwd=self.folder,
                        env=environment(self.settings, self.folder / "none.db"),
                        stdout=log,
                        stderr=log,
                    )
                )

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.ledger.close()

    def row(self, job_id: str) -> Any:
        return self.ledger.read(lambda connection: connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one())

    def count(self, number: int) -> int:
        """Jobs for an invoice that came to the ledger."""
        count = sa.select(sa.func.count()).where(jobs.c.key == f"invoice.write:number={number}")
        return int(self.ledger.read(lambda connection: connection.execute(count).scalar_one()))


@pytest.fixture(scope="module")
def stack(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(redis_server.url, tmp_path_factory.mktemp("stack"))
    stack.start()
    yield stack
    stack.stop()


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def site(framework: str, stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(framework, stack.settings, tmp_path_factory.mktemp(framework), stack.shops[framework]) as site:
        yield site


@pytest.fixture
def number() -> int:
    return uuid.uuid4().int % 2**30 + 1


def in_outbox(shop: Path) -> int:
    engine = sa.create_engine(f"sqlite:///{shop}")
    with engine.connect() as connection:
        count = int(connection.execute(sa.select(sa.func.count()).select_from(outbox)).scalar_one())
    engine.dispose()
    return count


def test_a_job_committed_with_the_request_runs_in_its_trace_and_is_followed_to_its_end(
    site: Site, stack: Stack, number: int
) -> None:
    answer = site.post("/invoices", {"traceparent": TRACEPARENT}, number=number, customer="Ada")
    assert answer.status_code == 202, answer.text
    events = site.events(answer.json()["events"])
    assert [name for name, _ in events] == ["status"] * (len(events) - 1) + ["end"]
    assert events[-1][1]["id"] == answer.json()["job"]
    assert events[-1][1]["state"] == "succeeded"
    again = site.client.get(answer.json()["events"], headers={"last-event-id": "end"})
    assert (again.status_code, again.content) == (204, b"")  # a browser that reconnects gets the answer to stop
    row = stack.row(answer.json()["job"])
    assert (row.traceparent, row.result) == (TRACEPARENT, f'"invoices/{number}.txt"')


def test_workers_find_the_handlers_of_the_django_project(
    redis_server: RedisServer, tmp_path: Path, number: int
) -> None:
    shop = tmp_path / "shop.db"
    settings = Settings(
        broker_url=redis_server.url,
        database_url=f"sqlite:///{tmp_path}/ledger.db",
        storage_url=f"file:{tmp_path}/storage",
        prefix=f"t{uuid.uuid4().hex[:10]}",
    )
    ledger = Database(settings.database_url)
    upgrade(ledger)
    ledger.close()
    with running("django", settings, tmp_path, shop) as site, (tmp_path / "worker.log").open("wb") as log:
        environ = environment(settings, shop) | {"DJANGO_SETTINGS_MODULE": "shop.settings"}
        command = [BIN / "penstock", "worker", "--engine", "celery"]
        worker = subprocess.Popen(command, cwd=EXAMPLES / "django", env=environ, stdout=log, stderr=log)
        try:
            database = sa.create_engine(f"sqlite:///{shop}")
            with database.begin() as connection:
                row = {"number": number, "customer": "Ada", "file": ""}
                connection.execute(sa.text("INSERT INTO shop_invoice VALUES (:number, :customer, :file)"), row)
            answer = site.post("/reprints", number=number, customer="Ada")
            assert site.events(answer.json()["events"])[-1][1]["state"] == "succeeded"
            with database.connect() as connection:
                assert connection.scalar(sa.text("SELECT file FROM shop_invoice")) == f"invoices/{number}.txt"
            database.dispose()
        finally:
            worker.terminate()
            worker.wait(WAIT_SECONDS)


def test_a_request_that_is_rolled_back_sends_nothing(site: Site, stack: Stack, framework: str, number: int) -> None:
    first = site.post("/invoices", number=number, customer="Ada")
    again = site.post("/invoices", number=number, customer="Grace")
    assert (first.status_code, again.status_code) == (202, 409), again.text
    site.events(first.json()["events"])
    until(lambda: in_outbox(stack.shops[framework]) == 0)
    assert stack.count(number) == 1


def test_a_job_goes_straight_to_the_broker_and_one_requests_trace_is_not_the_nexts(
    site: Site, stack: Stack, number: int
) -> None:
    traces = []
    for headers in ({"traceparent": TRACEPARENT}, {}, {"traceparent": "nonsense"}):
        answer = site.post("/reprints", headers, number=number, customer="Ada")
        assert answer.status_code == 202, answer.text
        assert site.events(answer.json()["events"])[-1][1]["state"] == "succeeded"
        traces.append(stack.row(answer.json()["job"]).traceparent)
    assert traces == [TRACEPARENT, None, None]


def test_a_wrong_job_is_the_callers_fault(site: Site, number: int) -> None:
    assert site.post("/invoices", number=-1, customer="Ada").status_code in (400, 422)
    assert site.post("/reprints", number=number).status_code in (400, 422)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "nonsense",
        progress_token("a-job", secret="another secret, of another site"),
        progress_token("a-job", secret=SECRET, expires_in=timedelta(microseconds=1)),
    ],
    ids=["none", "nonsense", "forged", "expired"],
)
def test_a_stream_wants_a_token_of_this_site(site: Site, token: str) -> None:
    answer = site.client.get("/penstock/events", params={"token": token})
    assert answer.status_code == 403
    assert "ask for a new one" in answer.json()["detail"]


def test_readiness_is_that_of_the_broker(site: Site) -> None:
    answer = site.client.get("/penstock/ready")
    assert (answer.status_code, answer.json()) == (200, {"broker": "ok"})


@pytest.mark.parametrize("name", [name for name in FRAMEWORKS if name not in ("drf", "django-asgi")])
def test_a_site_without_its_broker_is_not_ready_and_still_accepts_jobs_for_the_outbox(
    name: str, tmp_path: Path, number: int
) -> None:
    settings = Settings(
        broker_url=f"redis://127.0.0.1:{free_port()}/0",
        database_url=f"sqlite:///{tmp_path}/ledger.db",
        broker_timeout_seconds=1.0,
    )
    with running(name, settings, tmp_path, tmp_path / "shop.db") as site:
        answer = site.client.get("/penstock/ready")
        assert (answer.status_code, answer.json()) == (503, {"broker": "unavailable"})
        assert site.post("/invoices", number=number, customer="Ada").status_code == 202
    assert in_outbox(tmp_path / "shop.db") == 1
