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

_WIDTH = 30


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
    """Check configuration, handlers, schedules, broker, ledger and storage. The exit code is 1 if a check fails."""
    if gateway_url is not None and not production:
        raise typer.BadParameter("--gateway-url goes with --production")
    checks, settings = _answers(imports or [])
    if production and settings is not None:
        checks += _protection(settings, gateway_url)
    if as_json:
        print_json(checks)
    elif production:
        for result in checks:
            level = result.get("level") or ("OK" if result["ok"] else "FAIL")
            echo(f"{level:<4}  {result['check']:<{_WIDTH}}  {result['detail']}")
            if result.get("advice"):
                echo(f"{'':<{_WIDTH + 6}}  To do: {result['advice']}")
    else:
        for result in checks:
            echo(f"{'ok   ' if result['ok'] else 'WRONG'}  {result['check']:<9}  {result['detail']}")
    if not all(result["ok"] for result in checks):
        raise typer.Exit(FAILED)


def _answers(imports: list[str]) -> tuple[list[dict[str, Any]], Any]:
    """Results of the checks that everything answers; the settings, None if they are wrong."""
    checks: list[dict[str, Any]] = []
    settings: Any = None

    def check(name: str, look: Callable[[], str]) -> None:
        try:
            detail, good = look(), True
        except PenstockError as error:
            detail, good = str(error), False
        except Exception as error:  # the other checks still run
            detail, good = f"{type(error).__name__}: {error}", False
        checks.append({"check": name, "ok": good, "detail": detail})

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
        check("storage", lambda: answers.check_storage(settings))
    return checks, settings


def _protection(settings: Any, gateway_url: str | None) -> list[dict[str, Any]]:
    """Results of the hardening list: those of `_answers`, with a level and an advice."""
    from penstock.workers.cli.doctor.production import review
    from penstock.workers.cli.doctor.production.machine import Machine

    findings = review(settings, Machine.here(), gateway_url)
    return [{**asdict(finding), "ok": finding.level != "FAIL"} for finding in findings]
