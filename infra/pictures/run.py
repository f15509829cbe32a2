"""The pictures of docs/images: a real installation under load, the console's pages, and the board of Grafana.

.venv/bin/python infra/pictures/run.py docs/images --minutes 20      # or: make pictures

It starts a Redis, two workers of each engine, two dispatchers, a gateway, Flower and a Prometheus on free ports of this
machine, with their data in a temporary folder, and ends them all. On the way a job kills its worker, and the Redis is
killed for some seconds. It prints the panels without data and the alerts that fired.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import board
import console
import shop_jobs as jobs
import sqlalchemy as sa
import yaml
from sqlalchemy.orm import Session

from penstock.producers import BrokerUnavailable, Producer
from penstock.producers.outbox import Outbox, create_outbox
from penstock.workers.local.up.redis_server import RedisServer, free_port

HERE = Path(__file__).parent
PROMETHEUS = HERE.parent / "prometheus"
PENSTOCK = Path(sys.executable).with_name("penstock")
SCRAPE_SECONDS = 5
START_SECONDS, STOP_SECONDS = 180, 40
PROCESSES = {"worker": 4, "dispatcher": 2, "gateway": 1, "flower": 1}
OUTAGE = 0.15
"""Minutes without the broker."""

SETTINGS = """
[queues.reports]
engine = "dramatiq"
[queues.images]
engine = "dramatiq"
[schedules.heartbeat]
kind = "shop.heartbeat"
every = "10s"
[schedules.month-end]
kind = "month.end"
cron = "0 6 1 * *"
timezone = "Europe/Vienna"
payload = { month = 11 }
"""


class Process:
    """A process of the installation, which is started again when it dies, as systemd would."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._command, self._environment, self._log = command, environment, log
        self._process: subprocess.Popen[bytes] | None = None

    def keep_running(self) -> None:
        if self._process is None or self._process.poll() is not None:
            with self._log.open("ab") as out:
                self._process = subprocess.Popen(
                    self._command, env=self._environment, stdout=out, stderr=out, cwd=self._log.parent
                )

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()


def configuration(folder: Path, ports: dict[str, list[int]]) -> Path:
    """infra/prometheus/prometheus.yml with these targets."""
    config: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
    config["rule_files"] = [str(PROMETHEUS / pattern) for pattern in config["rule_files"]]
    for scrape in config["scrape_configs"]:
        targets = [f"127.0.0.1:{port}" for port in ports[scrape["job_name"].removeprefix("penstock-")]]
        scrape["static_configs"] = [{"targets": targets}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    return file


class Shop:
    """The application: it enqueues in waves, some seconds five times as much as others."""

    def __init__(self, producer: Producer, engine: sa.Engine) -> None:
        self._producer, self._engine, self._outbox = producer, engine, Outbox()

    def work(self) -> None:
        """Enqueue the jobs of half a second."""
        began = time.monotonic()
        wave = 3 if int(began) % 150 < 40 else 1
        batch = [jobs.SendMail() for _ in range(random.randrange(8) * wave)]
        self._producer.enqueue_many([*batch, *(jobs.SyncOrders() for _ in range(random.randrange(3) * wave))])
        self._producer.enqueue_many([jobs.ResizeImage() for _ in range(random.randrange(3))])
        self._producer.enqueue(jobs.SendMail(), delay=random.uniform(1, 30))
        if random.random() < 0.4:
            self._producer.enqueue(jobs.RenderReport())
        if random.random() < 0.05:
            self._producer.enqueue(jobs.MonthEnd(month=random.randrange(1, 13)))
        with Session(self._engine) as session:
            for _ in range(random.randrange(4)):
                self._outbox.enqueue(session, jobs.Charge())
            session.commit()
        time.sleep(max(0.0, began + 0.5 - time.monotonic()))

    def crash_a_worker(self) -> None:
        self._producer.enqueue(jobs.ResizeImage(harmful=True))


def unanswered(url: str) -> list[str]:
    """Targets of a Prometheus that do not answer it."""
    with urlopen(f"{url}/api/v1/targets", timeout=30) as answer:
        targets = json.load(answer)["data"]["activeTargets"]
    silent = [f"{target['scrapeUrl']}: {target['lastError']}" for target in targets if target["health"] != "up"]
    return silent if targets else ["no targets yet"]


def wait_for_all(url: str) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            missing = unanswered(url)
        except OSError as error:
            missing = [str(error)]
        if not missing:
            return
        if time.monotonic() > end:
            raise SystemExit("\n".join(missing))
        time.sleep(1)


def run(folder: Path, pictures: Path | None, minutes: float) -> tuple[list[str], list[str]]:
    """Run the installation for so long. Returns what had no data, and the alerts that fired."""
    shop_url = f"sqlite:///{folder}/shop.db"
    engine = sa.create_engine(shop_url)
    create_outbox(engine)
    (folder / "penstock.toml").write_text(SETTINGS)
    ports = {name: [free_port() for _ in range(count)] for name, count in PROCESSES.items()}
    redis = RedisServer(folder / "redis")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        "PENSTOCK_CONFIG": str(folder / "penstock.toml"),
        "PENSTOCK_BROKER_URL": redis.url,
        "PENSTOCK_DATABASE_URL": f"sqlite:///{folder}/ledger.db",
        "PENSTOCK_OUTBOX_URLS": json.dumps([shop_url]),
        "PENSTOCK_PREFIX": "board",
        "PENSTOCK_FLOWER_BASIC_AUTH": console.LOGIN,
    }
    subprocess.run([PENSTOCK, "db", "upgrade"], env=environment, check=True, capture_output=True)
    processes: list[Process] = []

    def add(name: str, port: int, *arguments: str) -> None:
        command = [str(PENSTOCK), *arguments, "--import", "shop_jobs"]
        processes.append(Process(command, environment | {"PENSTOCK_HTTP_PORT": str(port)}, folder / f"{name}.log"))

    for number, port in enumerate(ports["worker"]):
        kind, queues = ("celery", "emails,syncs,payments") if number % 2 else ("dramatiq", "reports,images")
        own = ("--engine", kind, "--queues", queues, "--concurrency", "8", "--name", f"{kind}-{number}")
        add(f"worker-{number}", port, "worker", *own)
    for number, port in enumerate(ports["dispatcher"]):
        add(f"dispatcher-{number}", port, "dispatcher")
    for port in ports["gateway"]:
        add("gateway", free_port(), "gateway", "--port", str(port))
    for port in ports["flower"]:
        add("flower", free_port(), "flower", "--port", str(port))
    listen = free_port()
    url = f"http://127.0.0.1:{listen}"
    prometheus = [shutil.which("prometheus") or "prometheus", f"--config.file={configuration(folder, ports)}"]
    prometheus += [f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{listen}"]
    processes.append(Process(prometheus, environment, folder / "prometheus.log"))
    redis.start()
    try:
        for process in processes:
            process.keep_running()
        wait_for_all(url)
        with Producer(redis.url, prefix="board") as producer:
            shop, began = Shop(producer, engine), time.monotonic()
            incidents = [(0.3, shop.crash_a_worker), (0.7, redis.kill), (0.7 + OUTAGE / minutes, redis.start)]
            while (passed := (time.monotonic() - began) / 60 / minutes) < 1:
                while incidents and passed > incidents[0][0]:
                    incidents.pop(0)[1]()
                for process in processes:
                    process.keep_running()
                with suppress(BrokerUnavailable):
                    shop.work()
        if pictures is not None:
            board.draw(url, pictures / "board.png", minutes)
            console.photograph(f"http://127.0.0.1:{ports['flower'][0]}", pictures)
        firing = 'max by (alertname) (max_over_time(ALERTS{alertstate="firing"}[1d]))'
        alerts = [series["metric"]["alertname"] for series in board.ask(url, "query", query=firing)]
        return [*board.without_data(url, minutes), *unanswered(url)], alerts
    finally:
        for process in processes:
            process.stop()
        redis.stop()
        engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "pictures", type=Path, nargs="?", help="a folder for them; not given: only the queries are tried"
    )
    parser.add_argument("--minutes", type=float, default=10, help="how long the load lasts")
    parser.add_argument("--keep", type=Path, help="a folder for data and logs, which stays")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        if arguments.keep:
            arguments.keep.mkdir(parents=True)
        folder = arguments.keep or stack.enter_context(tempfile.TemporaryDirectory())
        missing, alerts = run(Path(folder).resolve(), arguments.pictures, arguments.minutes)
    print("without data:", *missing or ["none"], sep="\n  ")
    print("alerts that fired:", *alerts or ["none"], sep="\n  ")


if __name__ == "__main__":
    main()
