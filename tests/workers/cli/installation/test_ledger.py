"""`penstock db stats`, `penstock db prune` and `penstock jobs erase`."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.ledgers import Note, change, claimed, end, message, row_of

from penstock.ledger.queries.results import write_result
from penstock.ledger.rows import audit
from penstock.ledger.sql.database import Database
from penstock.ledger.sql.tables import jobs, outbox
from penstock.producers.outbox import Outbox, create_outbox
from penstock.producers.storage import make_storage
from penstock.schemas import Outcome
from penstock.schemas.wire.ids import first_id

Run = Callable[..., Any]
DAY = timedelta(days=1)


def ended(ledger: Database, *, age: timedelta = timedelta(), **options: Any) -> str:
    sent = message(Note(), id=first_id(datetime.now(UTC) - age)[:35] + "7", **options)
    end(ledger, claimed(ledger, sent), Outcome.SUCCEEDED)
    change(ledger, sent.id, finished_at=datetime.now(UTC) - age)
    return sent.id


def test_prune_deletes_what_is_over_and_a_dry_run_only_says_so(penstock: Run, ledger: Database) -> None:
    old, young = ended(ledger, age=8 * DAY), ended(ledger, age=6 * DAY)
    output = penstock("db", "prune", "--dry-run")
    assert output.code == 0
    assert "would be deleted" in output.out
    assert penstock("db", "prune", "--dry-run", "--json").json == {"dry_run": True, "counts": {"succeeded": 1}}
    assert row_of(ledger, old) is not None
    assert penstock("db", "prune", "--json").json == {"dry_run": False, "counts": {"succeeded": 1}}
    assert row_of(ledger, old) is None
    assert row_of(ledger, young) is not None
    assert "nothing to delete" in penstock("db", "prune").err


def test_the_file_says_how_long(penstock: Run, ledger: Database, workplace: Path) -> None:
    (workplace / "penstock.toml").write_text('[retention]\nsucceeded = "2h"\n')
    ended(ledger, age=timedelta(hours=3))
    assert penstock("db", "prune", "--json").json["counts"] == {"succeeded": 1}


def test_stats_show_how_much_waits_in_each_outbox(
    penstock: Run, ledger: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, unreachable = f"sqlite:///{tmp_path / 'shop.db'}", "postgresql+psycopg://u:hidden@127.0.0.1:9/shop"
    engine = sa.create_engine(shop)
    create_outbox(engine)
    with engine.begin() as connection:
        for _ in range(2):
            Outbox().enqueue(connection, Note())
        connection.execute(sa.update(outbox).values(created_at=datetime.now(UTC) - timedelta(hours=1)))
    engine.dispose()
    monkeypatch.setenv("PENSTOCK_OUTBOX_URLS", json.dumps([shop, unreachable]))
    stats = penstock("db", "stats", "--json").json["outboxes"]
    assert [row["jobs"] for row in stats] == [0, 2, None]
    assert stats[0]["lag_seconds"] == 0
    assert 3500 < stats[1]["lag_seconds"] < 7200
    assert "is not available" in stats[2]["trouble"]
    output = penstock("db", "stats").out
    assert "lag seconds" in output
    assert "hidden" not in output + json.dumps(stats)


def test_stats_show_tables_and_states(penstock: Run, ledger: Database) -> None:
    ended(ledger)
    output = penstock("db", "stats")
    assert output.code == 0
    for text in ("penstock_jobs", "MiB", "succeeded", "7 d", "forever", "next prune"):
        assert text in output.out
    stats = penstock("db", "stats", "--json").json
    assert {row["table"]: row["rows"] for row in stats["tables"]}["penstock_jobs"] == 1
    [done] = [row for row in stats["states"] if row["state"] == "succeeded"]
    assert (done["jobs"], done["kept"]) == (1, 7 * 86400.0)


def test_erase_asks_before_it_does(penstock: Run, ledger: Database) -> None:
    own, other = ended(ledger, age=DAY, key="customer-7"), ended(ledger, age=2 * DAY, key="customer-8")
    refused = penstock("jobs", "erase", "--where", "key=customer-7", stdin="n\n")
    assert refused.code == 1
    assert "1 job would be erased" in refused.err
    output = penstock("jobs", "erase", "--where", "key=customer-7", "--dry-run")
    assert output.out == "1 job would be erased\n"
    assert row_of(ledger, own) is not None
    assert audit.find(ledger) == []
    erased = penstock("jobs", "erase", "--where", "key=customer-7", "--actor", "bob", stdin="y\n")
    assert erased.code == 0
    assert erased.out.endswith("1 job erased\n")
    assert row_of(ledger, own) is None
    assert row_of(ledger, other) is not None
    [line] = audit.find(ledger)
    assert (line.actor, line.act, line.count) == ("bob", "erase", 1)
    assert "customer-7" not in str(line)


def test_erase_takes_the_results_in_the_storage_too(penstock: Run, ledger: Database, workplace: Path) -> None:
    storage = make_storage("file:storage")
    own = ended(ledger, age=DAY, key="customer-7", tenant="acme")
    ref = write_result(storage, own, 1, b'"secret"')
    change(ledger, own, result_ref=ref)
    done = penstock("jobs", "erase", "--where", "key=customer-7", "--where", "tenant=acme", "--yes", "--json").json
    assert (done["counts"]["jobs"], done["counts"]["results"], done["dry_run"]) == (1, 1, False)
    assert storage.find(ref) is None
    with ledger.engine.connect() as connection:
        assert connection.execute(sa.select(jobs)).all() == []


def test_erase_leaves_what_runs_and_says_so(penstock: Run, ledger: Database) -> None:
    running = message(Note(), key="customer-7")
    claimed(ledger, running)
    done = penstock("jobs", "erase", "--where", "key=customer-7", "--yes")
    assert done.code == 1
    assert f"penstock jobs cancel {running.id}" in done.err
    assert row_of(ledger, running.id).key == "customer-7"


@pytest.mark.parametrize("where", ["kind=x", "key", "key=", "customer-7", ""])
def test_erase_refuses_a_selection_it_does_not_know(penstock: Run, ledger: Database, where: str) -> None:
    result = penstock("jobs", "erase", "--where", where, "--yes")
    assert result.code == 2
    assert "key=VALUE" in result.err


def test_erase_refuses_two_values_of_one_field(penstock: Run, ledger: Database) -> None:
    assert penstock("jobs", "erase", "--where", "key=a", "--where", "key=b", "--yes").code == 2
    assert penstock("jobs", "erase", "--yes").code == 2
