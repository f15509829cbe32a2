"""The house rules: one namespace over four source roots, and imports that run one way."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("config", "schemas", "ledger", "producers", "workers")
"""Packages of the namespace. Each may import the ones before it."""
FOLDER = {room: ROOT / ("schemas" if room == "ledger" else room) / "penstock" / room for room in ROOMS}
"""Package → its folder; the ledger is the second package of the `schemas` root."""

SOURCES = [path for folder in FOLDER.values() for path in folder.rglob("*.py")]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names.add(node.module or "")
    return names


def test_penstock_is_a_namespace_without_an_init_file() -> None:
    assert not list(ROOT.glob("*/penstock/__init__.py"))
    assert all((folder / "py.typed").exists() for folder in FOLDER.values())


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    above = ROOMS[ROOMS.index(room) + 1 :]
    for path in FOLDER[room].rglob("*.py"):
        for name in imported(path):
            assert not any(name == f"penstock.{other}" or name.startswith(f"penstock.{other}.") for other in above), (
                f"{path.relative_to(ROOT)} imports {name}"
            )


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_only_its_own_engine_imports_an_engine(engine: str) -> None:
    for path in SOURCES:
        inside = f"engines/{engine}" in path.as_posix()
        for name in imported(path):
            assert inside or name.split(".")[0] != engine, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("room", ["config", "schemas", "producers"])
def test_what_a_web_backend_imports_is_light(room: str) -> None:
    heavy = ["celery", "dramatiq", "sqlalchemy", "fastapi", "boto3", "redis", "kombu", "amqp", "pydantic_settings"]
    code = f"import sys, json, penstock.{room}; print(json.dumps([name for name in {heavy!r} if name in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []


def test_making_a_producer_loads_no_client_before_the_first_connection() -> None:
    code = (
        "import sys; from penstock.producers import Producer; "
        "Producer('redis://127.0.0.1:1/0'); Producer('amqp://127.0.0.1:1//'); "
        "print([name for name in ('redis', 'kombu', 'amqp', 'sqlalchemy') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_importing_reads_no_environment_and_opens_no_connection() -> None:
    """Settings are read by load_settings() alone; a broken environment must not break an import."""
    code = "import penstock.workers, penstock.producers, penstock.ledger.sql.tables"
    env = {"PATH": "/usr/bin", "PENSTOCK_BROKER_URL": "nonsense", "PENSTOCK_CONFIG": "/nowhere.toml"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
