"""Only the ledger writes its tables, and inside it only the transitions write jobs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import sqlalchemy as sa

from penstock.ledger.sql import tables

ROOT = Path(__file__).parents[2]
TABLES = {name for name, value in vars(tables).items() if isinstance(value, sa.Table)}
WRITING = {"insert", "insert_ignore", "update", "upsert", "delete"}
SQL = re.compile(r"\b(INSERT( OR \w+)? INTO|UPDATE|DELETE FROM|REPLACE INTO)\s+[\"`]?(penstock_\w+)", re.IGNORECASE)

ALLOWED = {
    # The outbox lies in the database of the web backend, and its rows go in with the backend's own transaction.
    "producers/penstock/producers/outbox.py": {"outbox"},
    "producers/penstock/producers/testing/ledger.py": {"outbox"},  # empties it, as the dispatcher would
    "producers/penstock/producers/testing/rows.py": {"jobs"},  # a test plays broker, dispatcher and clock
    "producers/penstock/producers/gateway/requests/idempotency.py": {"requests"},  # no one else reads them
}
"""File outside of the ledger → tables that it may write all the same."""

JOB_WRITERS = ("transitions/", "rows/", "workflows/", "retention/")
"""Folders of the ledger that may write jobs."""
ALSO = {
    "outbox/record.py": "a batch of the outbox is recorded, and released where the broker is down",
    "members/heartbeats.py": "the progress of running jobs",
}
"""Files of the ledger that may, too, and for what."""


def written(text: str) -> set[str]:
    """The ledger's tables that a module's statements write, by their names in `penstock.ledger.sql.tables`."""
    tree = ast.parse(text)
    names = {name: name for name in TABLES}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == tables.__name__:
            names |= {alias.asname: alias.name for alias in node.names if alias.asname and alias.name in TABLES}
    written: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) in WRITING:
            written |= {names[name] for name in (_name(argument) for argument in node.args[:1]) if name in names}
            # As in jobs.update().
            if isinstance(node.func, ast.Attribute) and (owner := _name(node.func.value)) in names:
                written.add(names[owner])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            written |= {match[3].removeprefix("penstock_") for match in SQL.finditer(node.value)}
    return written


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize(
    ("text", "tables_written"),
    [
        ("sa.insert(jobs).values(row)", {"jobs"}),
        ("connection.execute(sa.update(tables.jobs).values(x=1))", {"jobs"}),
        ("from penstock.ledger.sql.tables import requests as r\ndatabase.upsert(r, keep=())", {"requests"}),
        ("database.execute_many(connection, database.insert_ignore(unique_keys), rows)", {"unique_keys"}),
        ("unique_keys.delete().where(x)", {"unique_keys"}),
        ("sa.text('DELETE FROM penstock_jobs WHERE id = 1')", {"jobs"}),
        ("sa.select(jobs)", set()),
        ("row.update(jobs=1); storage.delete(key)", set()),
        ("sa.insert(orders)", set()),
    ],
)
def test_the_checker_finds_what_is_written(text: str, tables_written: set[str]) -> None:
    assert written(text) == tables_written


def test_no_module_outside_of_the_ledger_writes_its_tables() -> None:
    wrong = {}
    for folder in ("config", "schemas/penstock/schemas", "producers", "workers"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if outside := written(path.read_text()) - ALLOWED.get(name, set()):
                wrong[name] = outside
    assert wrong == {}


def test_what_is_allowed_is_needed() -> None:
    for name, allowed in ALLOWED.items():
        assert allowed <= written((ROOT / name).read_text()), name


def test_inside_of_the_ledger_only_transitions_and_their_kin_write_jobs() -> None:
    ledger = ROOT / "schemas/penstock/ledger"
    names = {
        path.relative_to(ledger).as_posix() for path in ledger.rglob("*.py") if "jobs" in written(path.read_text())
    }
    assert {name for name in names if not name.startswith(JOB_WRITERS)} == ALSO.keys()
