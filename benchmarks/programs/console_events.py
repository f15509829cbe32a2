"""`python -m benchmarks.programs.console_events`: answers of the console while 200 workers run 10,000 jobs a second.

It starts a Redis, a ledger on SQLite and a console of its own, publishes the events that such workers would send
without a sample (three for each job, and heartbeats), and asks pages all the while. It prints JSON: events a second,
and for each page the seconds of the median and of the slowest answer.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from redis import Redis

from penstock.ledger.sql.database import Database
from penstock.ledger.sql.upgrade import upgrade
from penstock.workers.local.up.redis_server import RedisServer, free_port

WORKERS, JOBS_PER_SECOND = 200, 10_000
_EVENTS_OF_A_JOB = ("task-received", "task-started", "task-succeeded")
_BATCH = 33
"""Jobs in a message."""
_PAGES = ("workers", "audit", "deadletters", "broker", "api/workers", "api/tasks")
_LOGIN = "op:benchmark-password"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        redis, port = RedisServer(Path(folder) / "redis"), free_port()
        url = f"sqlite:///{folder}/ledger.db"
        ledger = Database(url)
        upgrade(ledger)
        ledger.close()
        redis.start()
        variables = {"PENSTOCK_BROKER_URL": redis.url, "PENSTOCK_DATABASE_URL": url}
        environment = {**os.environ, **variables, "PENSTOCK_FLOWER_BASIC_AUTH": _LOGIN}
        command = [sys.executable, "-m", "penstock", "flower", "--port", str(port)]
        with subprocess.Popen(command, env=environment, cwd=folder) as console:
            try:
                _wait_for(port)
                flood = Flood(redis.url, seconds, JOBS_PER_SECOND)
                flood.start()
                answers = _ask(port, flood)
                flood.join()
                seen = len(json.loads(_get(port, "api/workers?status=1")))
            finally:
                console.terminate()
                redis.stop()
    print(json.dumps({"events per second": round(flood.rate), "workers seen": seen, "pages": answers}, indent=2))


class Flood(threading.Thread):
    """Publishes events at the rate, as workers do: in messages of about 100, which are encoded beforehand.

    Arguments:
        seconds: after which it ends, unless it is stopped.

    Attributes:
        rate: of events, per second; there when it has ended.
    """

    def __init__(self, url: str, seconds: float, jobs_per_second: int) -> None:
        super().__init__()
        self._url, self._seconds, self._jobs_per_second = url, seconds, jobs_per_second
        self._stopping = threading.Event()
        self.rate = 0.0

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        client = Redis.from_url(self._url)
        beats = [_message("worker.heartbeat", _event("worker-heartbeat", number)) for number in range(WORKERS)]
        jobs = [
            _message("task.multi", [_event(name, number, job) for job in range(_BATCH) for name in _EVENTS_OF_A_JOB])
            for number in range(WORKERS)
        ]
        begin, sent, beat_at = time.monotonic(), 0, 0.0
        while (passed := time.monotonic() - begin) < self._seconds and not self._stopping.wait(0.02):
            calls = client.pipeline(transaction=False)
            if passed >= beat_at:
                beat_at = passed + 2.0
                for beat in beats:
                    calls.publish("/0.celeryev/worker.heartbeat", beat)
            while sent < passed * self._jobs_per_second * len(_EVENTS_OF_A_JOB):
                calls.publish("/0.celeryev/task.multi", jobs[sent // _BATCH % WORKERS])
                sent += _BATCH * len(_EVENTS_OF_A_JOB)
            calls.execute()
        self.rate = sent / (time.monotonic() - begin)


def _message(routing_key: str, body: Any) -> str:
    """An event as kombu puts it on Redis."""
    delivery = {"exchange": "celeryev", "routing_key": routing_key}
    properties = {"delivery_info": delivery, "delivery_tag": "1", "body_encoding": "base64", "priority": 0}
    text = base64.b64encode(json.dumps(body).encode()).decode()
    head = {"content-encoding": "utf-8", "content-type": "application/json", "headers": {}}
    return json.dumps({"body": text, **head, "properties": properties})


def _event(name: str, worker: int, job: int = 0) -> dict[str, Any]:
    event: dict[str, Any] = {"type": name, "hostname": f"celery@worker-{worker}", "pid": worker, "utcoffset": 0}
    event |= {"clock": 1, "timestamp": time.time(), "freq": 2.0, "active": 5, "processed": 1000}
    return event if name.startswith("worker") else event | {"uuid": f"job-{worker}-{job}", "name": "shop.order"}


def _ask(port: int, flood: Flood) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {page: [] for page in _PAGES}
    while flood.is_alive():
        for page in _PAGES:
            begin = time.monotonic()
            _get(port, page)
            times[page].append(time.monotonic() - begin)
    return {
        page: {"answers": len(took), "median": round(statistics.median(took), 3), "slowest": round(max(took), 3)}
        for page, took in times.items()
    }


def _get(port: int, page: str) -> bytes:
    login = base64.b64encode(_LOGIN.encode()).decode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{page}", headers={"Authorization": f"Basic {login}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        body: bytes = answer.read()
        return body


def _wait_for(port: int) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            _get(port, "healthcheck")
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    main()
