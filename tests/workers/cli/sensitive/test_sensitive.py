"""A sensitive value on every path of a job: it is seen nowhere but in the columns that must hold it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import redis
import sqlalchemy as sa
from support.polling import until
from workers.cli.sensitive.sensitive_jobs import MARKER, WAYS, Isolated, Marked, Patient

from penstock.config.settings import Settings, load_settings
from penstock.ledger.members import api_keys
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import dead_letters, jobs, metadata
from penstock.ledger.transitions.claim import Claim
from penstock.ledger.transitions.outcome import AttemptOutcome
from penstock.producers import Producer
from penstock.producers.gateway import create_app
from penstock.producers.gateway.server import Server
from penstock.producers.senders import open_sender
from penstock.schemas import Outcome, State
from penstock.schemas.wire.codec import decode, encode
from penstock.workers.engines.monitoring.event_messages import message_of

Run = Callable[..., Any]
TESTS = Path(__file__).parents[3]
HOLD = {("penstock_jobs", "payload"), ("penstock_jobs", "result"), ("penstock_dead_letters", "raw")}
"""Columns that docs/contracts.md says hold the values."""
UNREADABLE = [
    {"iban": None, "how": "return", "amount": MARKER},
    {"iban": "x", "how": "return", "ibna": MARKER},
    {"iban": {"inner": MARKER}, "how": MARKER},
]


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """A worker and a dispatcher, whose logs are in files."""
    module = ["--import", "workers.cli.sensitive.sensitive_jobs"]
    commands = [["worker", "--engine", "celery", "--queues", "marked", *module], ["dispatcher", *module]]
    env = os.environ | {"PYTHONPATH": str(TESTS), "PENSTOCK_UNKNOWN_KIND_GRACE": "0s"}
    processes = []
    for command in commands:
        with (folder / f"{command[0]}.log").open("wb") as log:
            penstock = [str(Path(sys.executable).parent / "penstock"), *command]
            processes.append(subprocess.Popen(penstock, env=env, cwd=folder, stdout=log, stderr=log))
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


@contextmanager
def gateway(settings: Settings, ledger: Database) -> Iterator[httpx.Client]:
    text, _key = api_keys.add(ledger, "test")
    server = Server(create_app(settings), address="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, "the gateway")
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {text}"}, timeout=60
    ) as client:
        yield client
    server.stop()
    thread.join()


def send_all(settings: Settings) -> tuple[list[str], list[str]]:
    """The ids of jobs that can be read, and of those that cannot."""
    with Producer.from_settings(settings) as producer:
        sent = [producer.enqueue(Marked(iban=f"{MARKER}-{how}", how=how)).id for how in WAYS]
        again = producer.enqueue(Marked(iban=f"{MARKER}-snooze", how="snooze"))
        assert not again.created, "its key is that of a job that waits"
        values = {"ibans": [MARKER, f"{MARKER}\nand a second line"]}
        sent += [producer.enqueue(Patient(values=values)).id, producer.enqueue(Isolated(values=values)).id]
    sender = open_sender(settings.broker_url, prefix=settings.prefix)
    envelopes = [
        replace(
            encode(Marked(iban=None, how="return"), key=f"k{number}"), body=json.dumps([[], payload, None]).encode()
        )
        for number, payload in enumerate(UNREADABLE)
    ]
    sender.send(envelopes)
    sender.close()
    return sent, [envelope.id for envelope in envelopes]


def is_done(ledger: Database, sent: list[str], unreadable: list[str]) -> bool:
    """Whether each job has ended, or waits for an hour."""
    late = datetime.now(UTC) + timedelta(minutes=30)
    waits = sa.and_(jobs.c.due_at > late, jobs.c.error.is_not(None))
    done = sa.or_(jobs.c.state.in_([State.SUCCEEDED, State.DEAD, State.DISCARDED]), waits)

    def have_ended(connection: sa.Connection) -> bool:
        ended = set(connection.scalars(sa.select(jobs.c.id).where(done)))
        return ended.issuperset(sent) and set(connection.scalars(sa.select(dead_letters.c.id))).issuperset(unreadable)

    return ledger.read(have_ended)


def leaks_in_ledger(ledger: Database) -> list[str]:
    def search_tables(connection: sa.Connection) -> list[str]:
        leaks = []
        for table in metadata.sorted_tables:
            for row in connection.execute(sa.select(table)).mappings():
                for column, value in row.items():
                    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
                    if MARKER in text and (table.name, str(column)) not in HOLD:
                        leaks.append(f"{table.name}.{column}: {text}")
        return leaks

    return ledger.read(search_tables)


def leaks_in_redis(url: str) -> list[str]:
    read: dict[str, Callable[[Any, Any], Any]] = {
        "string": lambda client, key: client.get(key),
        "hash": lambda client, key: client.hgetall(key),
        "list": lambda client, key: client.lrange(key, 0, -1),
        "set": lambda client, key: client.smembers(key),
        "zset": lambda client, key: client.zrange(key, 0, -1),
        "stream": lambda client, key: client.xrange(key),
    }
    with redis.Redis.from_url(url) as client:
        content = [(key, read[client.type(key).decode()](client, key)) for key in client.scan_iter()]  # type: ignore[union-attr]
    assert content
    return [str(entry) for entry in content if MARKER in str(entry)]


def test_a_sensitive_value_is_seen_nowhere(penstock: Run, ledger: Database, workplace: Path) -> None:
    settings = load_settings()
    with running(workplace):
        sent, unreadable = send_all(settings)
        until(lambda: is_done(ledger, sent, unreadable), "all jobs")
    rows = {row.id: row for row in ledger.read(lambda connection: connection.execute(sa.select(jobs)).all())}
    by_way = dict(zip((*WAYS, "patient", "isolated"), (rows[job_id] for job_id in sent), strict=True))
    assert json.loads(by_way["return"].result)["paid"][0] == f"{MARKER}-return", "who waits for the result gets it"
    assert by_way["raise"].error == "ValueError: no bank has ***"
    assert by_way["isolated"].error == "RuntimeError: it cannot be paid"
    assert by_way["raise"].progress_note == "paying from ***"
    assert {by_way[way].state for way in ("raise", "chained", "group", "validation", "isolated")} == {State.DEAD}

    assert leaks_in_ledger(ledger) == []
    assert leaks_in_redis(settings.broker_url) == []
    files = [path for path in workplace.rglob("*") if path.is_file() and not path.name.startswith("ledger.db")]
    assert {"worker.log", "dispatcher.log"} <= {path.name for path in files}
    assert [str(path) for path in files if MARKER.encode() in path.read_bytes()] == []

    commands = [["jobs", "list"], ["deadletters", "list"], ["deadletters", "groups"], ["audit", "list"]]
    commands += [["jobs", command, job_id] for command in ("show", "explain") for job_id in [*sent, *unreadable]]
    letters = ledger.read(lambda connection: list(connection.scalars(sa.select(dead_letters.c.id))))
    commands += [["deadletters", "show", dead_letter_id] for dead_letter_id in letters]
    for command in commands:
        for options in ([], ["--json"]):
            result = penstock(*command, *options)
            assert MARKER not in result.out + result.err, command
    output = penstock("jobs", "show", sent[0], "--json").json
    assert output["result"] == {"paid": ["***", "to ***"], "amount": 7}

    with gateway(settings, ledger) as client:
        paths = ["/v1/deadletters", "/v1/deadletters/groups"]
        paths += [f"/v1/deadletters/{dead_letter_id}" for dead_letter_id in letters]
        paths += [f"/v1/jobs/{job_id}/explain" for job_id in sent] + [f"/v1/jobs/{job_id}" for job_id in sent[1:]]
        for path in paths:
            answer = client.get(path)
            assert answer.status_code == 200, answer.text
            assert MARKER not in answer.text, path
        for payload in UNREADABLE:
            answer = client.post("/v1/jobs/marked.pay", json=payload)
            assert answer.status_code == 422
            assert MARKER not in answer.text


def test_an_event_for_monitors_has_no_sensitive_value() -> None:
    message = decode(encode(Marked(iban=MARKER, how="return")))
    _type, received = message_of("received", message)
    assert MARKER not in str(received)
    outcome = AttemptOutcome(
        Claim(message, 1, 1, 0, 0, datetime.now(UTC)),
        Outcome.SUCCEEDED,
        State.SUCCEEDED,
        datetime.now(UTC),
        result=json.dumps({"paid": MARKER}),
    )
    _type, succeeded = message_of("ended", outcome)
    assert succeeded["result"] == '{"paid": "***"}'
