"""Imports that a worker must not leave to its threads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from penstock.workers.executor.attempt.child.server import VARIABLE

START = """
import json, sys
from penstock.schemas import Job
from penstock.workers import Context, handles
from penstock.workers.executor.attempt.session import import_sessions
from penstock.workers.handlers.registry import handlers

class Import(Job, kind="imports.job", queue="imports", track={track}):
    pass

@handles(Import{options})
{function}

import_sessions([handler for handler in handlers if handler.kind.queue == "imports"], "threads")
print(json.dumps([name in sys.modules for name in ("sqlalchemy.orm", "sqlalchemy.ext.asyncio")]))
"""


@pytest.mark.parametrize(
    ("function", "options", "track", "expected"),
    [
        ("async def run(job: Import, ctx: Context) -> None: ...", "", True, "[true, true]"),
        ("def run(job: Import, ctx: Context) -> None: ...", "", True, "[true, false]"),
        ("def run(job: Import, ctx: Context) -> None: ...", ", isolate=True", True, "[false, false]"),
        ("def run(job: Import, ctx: Context) -> None: ...", ", pool='processes'", True, "[false, false]"),
        ("def run(job: Import, ctx: Context) -> None: ...", "", False, "[false, false]"),
        ("async def run(job: Import) -> None: ...", "", True, "[false, false]"),
    ],
    ids=["coroutine", "thread", "isolated", "pool", "untracked", "without a context"],
)
def test_a_worker_imports_the_orm_before_it_starts_if_a_handler_may_open_a_session(
    function: str, options: str, track: bool, expected: str
) -> None:
    code = START.format(function=function, options=options, track=track)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_a_process_that_a_worker_starts_does_not_import_its_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps([sys.path, ["this"]]))
    code = "import sys; from penstock.workers.engines.inline import Inline; print('this' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
