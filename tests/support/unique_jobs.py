"""Unique kinds for tests, and a process that races for a key: `python unique_jobs.py BROKER LEDGER PREFIX KEY…`."""

from __future__ import annotations

import json
import sys
import threading

from penstock.config.errors import DuplicateJob
from penstock.producers import Producer
from penstock.schemas import Job

THREADS = 8


class Reject(Job, kind="uniq.reject", queue="uniq", unique_by=("n",), unique="reject"):
    n: int
    text: str = ""


class Existing(Job, kind="uniq.existing", queue="uniq", unique_by=("n",), unique="existing"):
    n: int
    text: str = ""


class Replace(Job, kind="uniq.replace", queue="uniq", unique_by=("n",), unique="replace"):
    n: int
    text: str = ""


class Debounce(Job, kind="uniq.debounce", queue="uniq", unique_by=("n",), unique="debounce", debounce=3600):
    n: int
    text: str = ""


class Hourly(Job, kind="uniq.hourly", queue="uniq", unique_by=("n",), unique="reject", unique_for=3600):
    n: int


class Ever(
    Job, kind="uniq.ever", queue="uniq", unique_by=("n",), unique="reject", unique_states=("queued", "succeeded")
):
    n: int


class Plain(Job, kind="uniq.plain", queue="uniq"):
    text: str = ""


class Light(Job, kind="uniq.light", queue="uniq", track=False):
    text: str = ""


def race(broker_url: str, database_url: str, prefix: str, numbers: list[int]) -> list[str]:
    """Enqueue each number from all threads at once. The ids of the jobs that were let in, and `!` for an error."""
    won: list[str] = []
    start = threading.Barrier(THREADS)

    def run() -> None:
        start.wait()
        for number in numbers:
            try:
                won.append(producer.enqueue(Reject(n=number)).id)
            except DuplicateJob:
                pass
            except Exception as error:
                won.append(f"!{error!r}")

    with Producer(broker_url, database_url=database_url, prefix=prefix) as producer:
        threads = [threading.Thread(target=run) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return won


if __name__ == "__main__":
    print("here", flush=True)
    sys.stdin.readline()  # all of the racers are
    print(json.dumps(race(*sys.argv[1:4], [int(number) for number in sys.argv[4:]])))
