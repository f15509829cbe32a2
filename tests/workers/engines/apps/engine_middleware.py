"""Middleware as a user adds it: in a module of handlers. Writes what it hears to `heard.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dramatiq

from penstock.workers.engines.dramatiq import get_broker

_HOOKS = ("worker_boot", "worker_shutdown", "process_message", "ack")


def _hook(name: str) -> Any:
    def heard(self: Any, broker: Any, subject: Any, **_: Any) -> None:
        line = [name, subject.message_id] if isinstance(subject, dramatiq.MessageProxy) else name
        with Path("heard.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    return heard


Writer = type(
    "Writer",
    (dramatiq.Middleware,),
    {f"{when}_{what}": _hook(f"{when}_{what}") for what in _HOOKS for when in ("before", "after")},
)
get_broker().add_middleware(Writer())
