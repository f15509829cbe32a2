"""A person's data is erased from every table and the storage, and no other's is."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import Login, Note, attempts_of, change, claim_one, claimed, end, letter_of, message, row_of

from penstock.ledger.queries.results import write_result
from penstock.ledger.retention import erasure
from penstock.ledger.retention.erasure import Erasure
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import cancelled_keys, effects, metadata, outbox, unique_keys
from penstock.ledger.transitions import due
from penstock.ledger.transitions.bury import bury_message
from penstock.producers.outbox import Outbox
from penstock.producers.storage import Storage, make_storage
from penstock.schemas import Outcome, State
from penstock.schemas.wire.codec import Envelope, Message, encode

NAME = "ada@example.com"
LONG_AGO = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return make_storage(f"file:{tmp_path}/storage")


def erase(ledger: Database, storage: Storage, dry_run: bool = False, **where: str) -> Erasure:
    return erasure.erase(ledger, where, lambda: storage, actor="bob", dry_run=dry_run)


def everything(ledger: Database) -> str:
    """All that the ledger holds, as text."""

    def read_tables(connection: sa.Connection) -> str:
        return "\n".join(str(row) for table in metadata.sorted_tables for row in connection.execute(sa.select(table)))

    return ledger.read(read_tables)


def ended(ledger: Database, outcome: Outcome = Outcome.SUCCEEDED, key: str = NAME, **options: Any) -> Message:
    """A job of a person that ended long ago."""
    sent = message(Login(user=key), key=key, **options)
    end(ledger, claimed(ledger, sent), outcome, error=f"no such user: {key}")
    change(ledger, sent.id, finished_at=LONG_AGO)
    return sent


def test_erasing_leaves_only_a_line_in_the_audit_log(ledger: Database, storage: Storage) -> None:
    done, dead = ended(ledger), ended(ledger, Outcome.DEAD)
    ref = write_result(storage, done.id, 1, json.dumps(NAME).encode())
    change(ledger, done.id, result_ref=ref)
    effect = {"id": str(uuid.uuid4()), "job_id": done.id, "key": NAME, "fence": 1, "begun_at": LONG_AGO}
    key = {"id": "u", "kind": "ledger.login", "key": NAME, "job_id": done.id}
    cancelled = {"id": "c", "key": NAME, "cancelled_at": LONG_AGO}
    body = encode(Login(user=NAME), key=NAME)
    body.headers["task"] = "nobody.knows"
    copy = Envelope("notes", "normal", body.headers | {"id": done.id}, body.body)
    raw = bury_message(ledger, copy, b"", "unknown_kind", f"for {NAME}")
    assert letter_of(ledger, raw) is not None

    def insert_traces(connection: sa.Connection) -> None:
        for table, row in ((effects, effect), (unique_keys, key), (cancelled_keys, cancelled)):
            connection.execute(sa.insert(table).values(**row))
        audit.write(connection, actor="ada", act="cancel", subject=NAME, detail={"key": NAME})

    ledger.write(insert_traces)
    other = ended(ledger, Outcome.DEAD, key="eve@example.com")
    counts = {"jobs": 2, "attempts": 1, "effects": 1, "dead letters": 2, "results": 1, "keys": 2}
    planned = erase(ledger, storage, dry_run=True, key=NAME)
    assert {name: planned.counts[name] for name in counts} == counts
    assert row_of(ledger, dead.id) is not None
    gone = erase(ledger, storage, key=NAME)
    assert {name: gone.counts[name] for name in counts} == counts
    assert NAME not in everything(ledger)
    assert storage.find(ref) is None
    assert row_of(ledger, other.id) is not None
    assert letter_of(ledger, other.id) is not None
    [line] = audit.find(ledger, acts=["erase"])
    assert (line.actor, line.count, line.detail) == ("bob", 2, {"where": {"key": erasure.hashed(NAME)}})


def test_an_erased_job_that_may_be_on_its_way_leaves_a_tombstone_that_refuses_it(
    ledger: Database, storage: Storage
) -> None:
    waiting = encode(Login(user=NAME), key=NAME, tenant="acme", due_at=datetime.now(UTC) + timedelta(hours=1))
    due.schedule(ledger, [waiting])
    just = message(Login(user=NAME), key=NAME)
    end(ledger, claimed(ledger, just), Outcome.RETRY, due_at=datetime.now(UTC), error=NAME)
    assert erase(ledger, storage, key=NAME).counts["tombstones"] == 2
    assert NAME not in everything(ledger)
    for job_id in (waiting.id, just.id):
        row = row_of(ledger, job_id)
        assert (row.state, row.key, row.tenant, row.due_at) == (State.CANCELLED, None, None, None)
    due.schedule(ledger, [waiting])  # the dispatcher takes it in once more
    assert getattr(claim_one(ledger, just), "reason", None) == "cancelled"
    assert NAME not in everything(ledger)


def test_an_erased_row_of_the_outbox_is_never_sent(ledger: Database, storage: Storage) -> None:
    out = Outbox()

    def enqueue_rows(connection: sa.Connection) -> None:
        out.enqueue(connection, Login(user=NAME), key=NAME, tenant="acme")
        out.enqueue(connection, Login(user=NAME), key=NAME, tenant="globex")
        out.enqueue(connection, Login(user="Eve"), key=NAME.upper(), tenant="globex")
        broken = {"kind": "a.kind", "queue": "notes", "priority": "normal", "key": NAME, "track": True, "body": b""}
        connection.execute(sa.insert(outbox).values(id="b", headers="no JSON", created_at=LONG_AGO, **broken))

    ledger.write(enqueue_rows)
    assert erase(ledger, storage, True, key=NAME).counts["outbox"] == 3
    assert erase(ledger, storage, key=NAME, tenant="acme").counts["outbox"] == 1
    assert erase(ledger, storage, key=NAME).counts["outbox"] == 2
    assert NAME not in everything(ledger)
    assert erase(ledger, storage, tenant="globex").counts["outbox"] == 1
    assert [line.count for line in audit.find(ledger, acts=["erase"])] == [1, 2, 1]


def test_a_running_job_is_not_erased_but_named(ledger: Database, storage: Storage) -> None:
    running = message(Login(user=NAME), key=NAME)
    claim = claimed(ledger, running)
    done = ended(ledger)
    for dry_run in (True, False):
        assert erase(ledger, storage, dry_run, key=NAME).running == [running.id]
    assert row_of(ledger, done.id) is None
    assert end(ledger, claim, Outcome.SUCCEEDED)
    assert erase(ledger, storage, key=NAME).running == []
    assert NAME not in everything(ledger)


def test_erased_jobs_match_all_conditions(ledger: Database, storage: Storage) -> None:
    own = ended(ledger, tenant="acme")
    others = [ended(ledger, tenant="globex"), ended(ledger, key="eve", tenant="acme"), ended(ledger, key=NAME.upper())]
    erase(ledger, storage, key=NAME, tenant="acme")
    assert row_of(ledger, own.id) is None
    assert None not in [row_of(ledger, other.id) for other in others]
    erase(ledger, storage, id=others[1].id)
    assert row_of(ledger, others[1].id) is None
    erase(ledger, storage, key=NAME)
    assert row_of(ledger, others[0].id) is None
    assert row_of(ledger, others[2].id) is not None, "another key, whatever the database takes for equal"


def test_erasing_goes_on_after_a_batch(ledger: Database, storage: Storage) -> None:
    now = datetime.now(UTC)
    rows = [due.waiting(encode(Note(), key=NAME, due_at=now)) for _ in range(2 * erasure.BATCH + 1)]
    for row in rows:
        row |= {"state": State.SUCCEEDED, "finished_at": LONG_AGO}
    due.keep(ledger, rows)
    assert erase(ledger, storage, True, key=NAME).counts["jobs"] == len(rows)
    assert erase(ledger, storage, key=NAME).counts["jobs"] == len(rows)
    [line] = audit.find(ledger, acts=["erase"])
    assert line.count == len(rows)
    assert attempts_of(ledger, rows[0]["id"]) == []


def test_a_selection_that_says_nothing_is_refused(ledger: Database, storage: Storage) -> None:
    with pytest.raises(ValueError, match="id, key, tenant"):
        erase(ledger, storage)
    with pytest.raises(ValueError, match="id, key, tenant"):
        erase(ledger, storage, kind="x")
