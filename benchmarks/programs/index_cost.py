"""Cost of the indexes of lists, for each job: `python -m benchmarks.programs.index_cost URL JOBS ROUNDS`.

URL is an empty ledger of its own: it is upgraded, filled and left full. In each round JOBS jobs are claimed and
recorded as succeeded, in batches of 100, with all indexes, without those of lists, and without each of these. Prints
JSON: indexes that are missing → microseconds a job, one a round: `processor`, that of the process that asks and of the
server's thread that answers; `wall`, which includes disks and other users of the machine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from penstock.ledger.members import heartbeats
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables.jobs import jobs, limit_indexes
from penstock.ledger.sql.upgrade import upgrade
from penstock.ledger.transitions.claim import Claim, ClaimRequest, claim
from penstock.ledger.transitions.outcome import AttemptOutcome, record
from penstock.schemas import Job
from penstock.schemas.states import Outcome, State
from penstock.schemas.wire.codec import Message, decode, encode

BATCH = 100
TENANTS = 50
WORKER = "bench-worker"
LISTS = {
    index.name: index
    for index in sorted(jobs.indexes, key=lambda index: str(index.name))
    if {"enqueued_at", "finished_at"} & {column.name for column in index.columns}
}
_SERVER_THREAD = {
    "postgresql": "SELECT pg_backend_pid()",
    "mariadb": "SELECT tid FROM information_schema.processlist WHERE id = connection_id()",
}


class Note(Job, kind="bench.indexed", queue="bench-indexed"):
    number: int


def messages(count: int) -> list[Message]:
    """Jobs, of which two thirds have a tenant and a tenth has a key."""
    return [
        decode(
            encode(
                Note(number=number),
                tenant=f"tenant-{number % TENANTS}" if number % 3 else None,
                key=f"key-{number}" if number % 10 == 0 else None,
            )
        )
        for number in range(count)
    ]


def processor_seconds(database: Database) -> float:
    """Processor time of this process, and of the server's thread for its connection."""
    own = time.process_time()
    if (select := _SERVER_THREAD.get(database.dialect)) is None:
        return own
    thread = database.read(lambda connection: connection.execute(sa.text(select)).scalar_one())
    [path] = [*Path("/proc").glob(f"{thread}/stat"), *Path("/proc").glob(f"[0-9]*/task/{thread}/stat")][:1]
    fields = path.read_text().rpartition(")")[2].split()
    return own + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(database: Database, count: int) -> dict[str, float]:
    requests = [ClaimRequest(message, redelivered=False, max_crashes=3) for message in messages(count)]
    processor, wall = processor_seconds(database), time.perf_counter()
    for start in range(0, count, BATCH):
        answers = claim(database, requests[start : start + BATCH], worker=WORKER)
        now = datetime.now(UTC)
        outcomes = [
            AttemptOutcome(answer, Outcome.SUCCEEDED, State.SUCCEEDED, now, result="null")
            for answer in answers
            if isinstance(answer, Claim)
        ]
        if len(outcomes) < len(answers) or not all(record(database, outcomes, worker=WORKER)):
            raise RuntimeError("a job was not claimed or not recorded")
    wall, processor = time.perf_counter() - wall, processor_seconds(database) - processor
    return {"processor": processor / count * 1e6, "wall": wall / count * 1e6}


def main(url: str, count: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    database = Database(url, pool_size=1)
    upgrade(database)
    limit_indexes(database.dialect)
    heartbeats.register(database, WORKER, engine="bench", queues=[], kinds={}, lease=timedelta(days=1))
    variants = {"none": [], "lists": [*LISTS.values()], **{str(name): [index] for name, index in LISTS.items()}}
    times: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name, missing in variants.items():
            for index in missing:
                database.write(index.drop)
            for figure, value in measure(database, count).items():
                times.setdefault(name, {}).setdefault(figure, []).append(round(value, 1))
            for index in missing:
                database.write(index.create)
    database.close()
    return times


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), indent=1))
