from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.ledgers import upgraded
from typer.testing import CliRunner

from penstock.ledger.sql.database import Database
from penstock.workers.cli import app


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be JSON and nothing else."""
        return json.loads(self.out)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str, prefix: str) -> Path:
    """An empty working directory, and settings for servers of the tests' own."""
    monkeypatch.chdir(tmp_path)
    for name in ("PENSTOCK_CONFIG", "PENSTOCK_LOG_FORMAT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PENSTOCK_BROKER_URL", redis_url)
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", "sqlite:///ledger.db")
    monkeypatch.setenv("PENSTOCK_STORAGE_URL", "file:storage")
    monkeypatch.setenv("PENSTOCK_PREFIX", prefix)
    return tmp_path


@pytest.fixture
def penstock(workplace: Path) -> Callable[..., Result]:
    """Run a command in this process."""

    def run(*arguments: str, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, arguments, input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Result(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def ledger(workplace: Path) -> Iterator[Database]:
    database = Database(upgraded("sqlite:///ledger.db"))
    yield database
    database.close()
