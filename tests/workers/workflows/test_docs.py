"""The examples of the page about workflows run."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.polling import until

from penstock.ledger.sql.tables import jobs
from penstock.ledger.workflows import commands
from penstock.schemas.jobs.kind import registry
from penstock.workers.engines.inline import Inline
from penstock.workers.handlers.registry import handlers
from penstock.workers.workflows.definition import definitions

PAGE = Path(__file__).parents[3] / "docs" / "workflows.md"
KINDS = ("orders.sync", "report.region", "mail.send", "month.end")


@pytest.fixture
def output() -> Iterator[Any]:
    """The module on the page, with handlers that return something."""
    [code, *_] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    module = types.ModuleType("shown_in_docs")
    sys.modules[module.__name__] = module
    code = re.sub(r"(@handles\(\w+\)\n[^\n]*) \.\.\.(?=\n)", r"\1 return RESULTS.pop(0)", code)
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    yield module
    for name in KINDS:
        kind = registry[name]
        handlers.discard(kind)
        registry.discard(kind)
    del definitions["month.end"], sys.modules[module.__name__]


def test_the_workflow_on_the_page_runs(output: Any) -> None:
    output.RESULTS = [
        output.Synced(regions=["north", "south"]),
        output.Built(region="north", link="n"),
        output.Built(region="south", link="s"),
        "sent",
    ]
    with Inline(queues=["default", "syncs", "reports", "emails"], concurrency=1) as penstock:
        handle = penstock.producer.enqueue(output.MonthEnd(month=date(2026, 11, 1)))
        until(lambda: output.RESULTS == ["sent"])
        commands.signal(penstock.database, handle.id, "approval", {"approved": True}, actor="ada")
        assert handle.wait(60).result == "sent"
        select = sa.select(jobs.c.payload).where(jobs.c.kind == "mail.send")
        [payload] = penstock.database.read(lambda connection: list(connection.scalars(select)))
        assert json.loads(payload) == {"text": "The reports of November", "links": ["n", "s"]}
