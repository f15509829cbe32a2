"""Options of `penstock worker`, which are read without typer where all is well with them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import typer
from typer.main import get_command

from penstock.workers.cli.run import worker
from penstock.workers.engines import command


def by_typer(monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any] | None:
    """Options that the command passes on; None: typer refuses them."""
    options: dict[str, Any] = {}
    monkeypatch.setattr(command, "run", lambda **arguments: options.update(arguments) or 0)
    app = typer.Typer(add_completion=False)
    app.command()(worker)
    try:
        get_command(app)(list(words), standalone_mode=False)
    except Exception:
        return None
    return options


def with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    defaults = {name: parameter.default for name, parameter in inspect.signature(DEFAULTS).parameters.items()}
    return defaults | options | {name: tuple(options[name]) for name in REPEATED}


DEFAULTS = command.run
REPEATED = ("imports", "dramatiq")
"""Options that may be given several times."""


def options_of_typer() -> list[str]:
    app = typer.Typer(add_completion=False)
    app.command()(worker)
    return [parameter.opts[0] for parameter in get_command(app).params if parameter.name != "help"]


@pytest.mark.parametrize("option", options_of_typer())
def test_each_option_is_read_as_typer_reads_it(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    valid = {
        "--engine": ["dramatiq"],
        "--celery": ["shop.celery:app"],
        "--queues": ["a,b"],
        "--concurrency": ["1", "10000"],
        "--processes": ["1", "256"],
        "--pool": ["threads", "async", "processes"],
        "--name": ["web"],
        "--max-jobs": ["1", "1000000"],
        "--max-memory": ["512MB", "1GiB", "1"],
        "--log-jobs": [None],
        "--rq": ["high,default"],
        "--import": ["shop.jobs"],
        "--dramatiq": ["shop.actors"],
        "--log-level": ["debug"],
    }[option]
    for value in valid:
        forms = [[option]] if value is None else [[option, value], [f"{option}={value}"]]
        for words in forms:
            options = command.parse(words)
            assert options is not None
            expected = by_typer(monkeypatch, *words)
            assert expected is not None
            assert with_defaults(options) == expected | {name: tuple(expected[name]) for name in REPEATED}


@pytest.mark.parametrize(
    "words",
    [
        ["--concurrency", "0"],
        ["--concurrency", "10001"],
        ["--concurrency", "x"],
        ["--concurrency"],
        ["--processes", "257"],
        ["--pool", "prefork"],
        ["--max-jobs", "0"],
        ["--max-memory", "0"],
        ["--max-memory", "much"],
        ["--queue", "a"],
        ["--log-jobs=yes"],
        ["emails"],
    ],
    ids=" ".join,
)
def test_what_typer_refuses_is_left_to_it(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert command.parse(words) is None
    assert by_typer(monkeypatch, *words) is None


def test_help_is_left_to_typer() -> None:
    assert command.parse(["--help"]) is None


def test_modules_to_import_add_up() -> None:
    options = command.parse(["--import", "a", "--import=b"])
    assert options is not None
    assert options["imports"] == ["a", "b"]
