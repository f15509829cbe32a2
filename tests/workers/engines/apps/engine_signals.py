"""Receivers of Celery's signals, as a user has them in a module of handlers. Write what they hear to `heard.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from celery import signals


def _write(name: str, task_id: str, what: Any) -> None:
    with Path("heard.jsonl").open("a") as file:
        file.write(json.dumps([name, task_id, what]) + "\n")


@signals.task_prerun.connect
def prerun(task_id: str, kwargs: Any, **_: Any) -> None:
    _write("prerun", task_id, kwargs)


@signals.task_postrun.connect
def postrun(task_id: str, state: str, **_: Any) -> None:
    _write("postrun", task_id, state)


@signals.task_failure.connect
def failure(task_id: str, exception: Exception, **_: Any) -> None:
    _write("failure", task_id, str(exception))
