"""Isolated handlers that were taken over: they write to the pipe of their worker what they like."""

from __future__ import annotations

import json
import logging
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.config.settings import Settings, load_settings
from penstock.schemas import Job, RetryPolicy
from penstock.workers import Context, handles

ONCE = RetryPolicy(max_attempts=1)


class Attack(Job, kind="attack.pipe", queue="ex", timeout=60, retry=ONCE):
    """Writes the bytes of one of `ATTACKS`, and returns."""

    name: str
    file: str = ""


class Look(Job, kind="attack.look", queue="ex", timeout=60, retry=ONCE):
    """Returns the environment that it sees in several ways."""


class Large(Job, kind="attack.large", queue="ex", timeout=60, retry=ONCE):
    """Returns a text of a size."""

    size: int


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.file),)


def _framed(message: object, result: bytes = b"") -> bytes:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack("!II", len(body), len(result)) + body + result


def _pickled(file: str) -> bytes:
    return pickle.dumps({"answer": {"value": Bomb(file), "outgoing": []}})


_RECORD = {"name": "x", "levelno": 30, "msg": "x"}
ATTACKS: dict[str, Callable[[str], bytes]] = {
    "a pickle": _pickled,
    "a pickle after its length": lambda file: struct.pack("!Q", len(_pickled(file))) + _pickled(file),
    "a pickle in place of JSON": lambda file: _framed(_pickled(file)),
    "garbage": lambda file: bytes(range(255, -1, -1)) * 100,
    "a claim of 4 GB": lambda file: struct.pack("!II", 2**32 - 1, 0),
    "a claim of a result of 4 GB": lambda file: struct.pack("!II", 2, 2**32 - 1) + b"{}",
    "no JSON": lambda file: _framed(b"{nothing"),
    "deep JSON": lambda file: _framed(b"[" * 1_000_000),
    "an empty message": lambda file: _framed({}),
    "an unknown field": lambda file: _framed({"started": True, "more": 1}),
    "another method": lambda file: _framed({"once": ["__init__", "key", None]}),
    "no number": lambda file: _framed({"progress": ["many", None, None]}),
    "a number below zero": lambda file: _framed({"progress": [-1, None, None]}),
    "a record without a name": lambda file: _framed({"log": {"levelno": 30, "msg": "x"}}),
    "a record with a list": lambda file: _framed({"log": {**_RECORD, "args": [1]}}),
    "the answer of another program": lambda file: _framed({"answer": {"unfit": "so"}}),
    "a result that is no JSON": lambda file: _framed({"answer": {"value": None, "outgoing": []}}, b"{nothing"),
    "a result that is no text": lambda file: _framed({"answer": {"value": None, "outgoing": []}}, b"\xff\xff"),
}
HALF = {"half a length": b"\0\0", "half a frame": struct.pack("!II", 2**20, 0) + b'{"started"'}


@handles(Attack, isolate=True)
def attack(job: Attack, ctx: Context) -> str:
    pipe = logging.root.handlers[0]._pipe  # type: ignore[attr-defined]
    pipe._connection.sendall(HALF[job.name] if job.name in HALF else ATTACKS[job.name](job.file))
    if job.name in HALF:
        os._exit(0)
    return "fine"


@handles(Look, isolate=True)
def look(job: Look, settings: Settings) -> dict[str, Any]:
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    first = Path("/proc/self/environ").read_bytes().decode(errors="replace") if sys.platform == "linux" else ""
    return {
        "own": dict(os.environ),
        "of a process": json.loads(started),
        "first": first,
        "database": [settings.database_url, load_settings().database_url],
    }


@handles(Large, isolate=True)
def large(job: Large) -> str:
    return "x" * job.size
