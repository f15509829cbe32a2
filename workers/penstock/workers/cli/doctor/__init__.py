"""`penstock doctor`: checks of everything that a worker needs, and of how well an installation is protected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from penstock.config.errors import PenstockError
from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.options import AsJson, Imports
from penstock.workers.cli.common.output import echo, print_json
from penstock.workers.cli.common.session import open_settings
from penstock.workers.cli.doctor import answers
from penstock.workers.telemetry.findings import Finding

_WIDTH, _SHORT_WIDTH = 30, 12
_WORDS = {"OK": "ok", "WARN": "warn", "FAIL": "WRONG"}


def add_to(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    imports: Imports = None,
    production: Annotated[
        bool, typer.Option("--production", help="Check also the hardening list of docs/security.md.")
    ] = False,
    gateway_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="With --production: the gateway's public address, to look at its TLS."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check settings, broker, ledger, storage and mail, and what runs: dispatchers, workers, and what waits too long.

    The exit code is 1 if a check fails.
    """
    if gateway_url is not None and not production:
        raise typer.BadParameter("--gateway-url goes with --production")
    checks, settings = _answers(imports or [])
    if production and settings is not None:
        checks += _protection(settings, gateway_url)
    if as_json:
        print_json(checks)
    else:
        _print(checks, *((4, _WIDTH, {}) if production else (5, _SHORT_WIDTH, _WORDS)))
    if not all(result["ok"] for result in checks):
        raise typer.Exit(FAILED)


def _print(checks: list[dict[str, Any]], level_width: int, width: int, words: dict[str, str]) -> None:
    for result in checks:
        level = result.get("level") or ("OK" if result["ok"] else "FAIL")
        echo(f"{words.get(level, level):<{level_width}}  {result['check']:<{width}}  {result['detail']}")
        if result.get("advice"):
            echo(f"{'':<{level_width + width + 2}}  To do: {result['advice']}")


def _answers(imports: list[str]) -> tuple[list[dict[str, Any]], Any]:
    """Results of the checks that everything answers; the settings, None if they are wrong."""
    checks: list[dict[str, Any]] = []
    settings: Any = None

    def check(name: str, look: Callable[[], str | list[Finding]]) -> None:
        good = False
        try:
            detail = look()
            good = True
        except PenstockError as error:
            detail = str(error)
        except Exception as error:  # the other checks still run
            detail = f"{type(error).__name__}: {error}"
        if isinstance(detail, str):
            checks.append({"check": name, "ok": good, "detail": detail})
        else:
            checks.extend(map(_row, detail))

    def config() -> str:
        nonlocal settings
        from penstock.config.toml import find_config

        settings = open_settings()
        return str(find_config() or "no penstock.toml; using defaults and the environment")

    check("config", config)
    check("handlers", lambda: answers.check_handlers(imports, settings))
    if settings is not None:
        check("schedules", lambda: answers.check_schedules(settings))
        check("broker", lambda: answers.check_broker(settings))
        check("ledger", lambda: answers.check_ledger(settings))
        if checks[-1]["ok"]:
            check("operation", lambda: answers.check_operation(settings))
        check("storage", lambda: answers.check_storage(settings))
        check("mail", lambda: answers.check_mail(settings))
    return checks, settings


def _protection(settings: Any, gateway_url: str | None) -> list[dict[str, Any]]:
    """Results of the hardening list: those of `_answers`, with a level and an advice."""
    from penstock.workers.cli.doctor.production import review
    from penstock.workers.cli.doctor.production.machine import Machine

    findings = review(settings, Machine.here(), gateway_url)
    return list(map(_row, findings))


def _row(finding: Finding) -> dict[str, Any]:
    return {**asdict(finding), "ok": finding.level != "FAIL"}
