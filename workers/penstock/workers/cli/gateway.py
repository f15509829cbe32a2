"""`penstock gateway`: the HTTP gateway and its API keys."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.config.errors import ConfigError
from penstock.schemas.verbs import Verb
from penstock.workers.cli.common.actor import Actor
from penstock.workers.cli.common.options import AsJson, Imports, LogLevel, duration, rate
from penstock.workers.cli.common.output import echo, print_json, print_rows
from penstock.workers.cli.common.session import open_ledger, open_settings
from penstock.workers.handlers.discovery import discover

app = typer.Typer()
keys = typer.Typer(no_args_is_help=True)
app.add_typer(keys, name="keys", help="See, make and revoke API keys.")


@app.callback(invoke_without_command=True)
def gateway(
    context: typer.Context,
    address: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8480,
    imports: Imports = None,
    log_level: LogLevel = "INFO",
) -> None:
    """Run the gateway until SIGTERM or Ctrl-C. It accepts the kinds of the imported modules."""
    if context.invoked_subcommand is not None:
        return
    from penstock.config.logging import setup_logging
    from penstock.workers.telemetry.failures.sentry import init_sentry
    from penstock.workers.telemetry.traces.otel_setup import spans_exported

    settings = open_settings()
    setup_logging(log_level, settings.log_format)
    init_sentry(settings)
    discover(imports or ())
    server = _load("server")
    with spans_exported("gateway"):
        code = server.run_gateway(settings, address=address, port=port)
    raise typer.Exit(code)


@app.command("openapi")
def write_openapi(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file instead of standard output.")] = None,
    imports: Imports = None,
) -> None:
    """Write the OpenAPI document, with an operation for each kind, for client generators."""
    discover(imports or ())
    text = _load("openapi").document_text(_load("app").create_app(open_settings()))
    if output is None:
        typer.echo(text)
    else:
        output.write_text(text + "\n", "utf-8")
        echo(f"{output}: written", err=True)


Patterns = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Only for names that match, such as invoice.*; may be given repeatedly."),
]


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="The owner of the key, for lists and the audit log.")],
    verb: Annotated[
        list[Verb] | None, typer.Option(help="Only to do this; may be given repeatedly. Not given: everything.")
    ] = None,
    kind: Patterns = None,
    queue: Patterns = None,
    tenant: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only for this tenant's jobs; may be given repeatedly.")
    ] = None,
    per_second: Annotated[
        float | None,
        typer.Option("--rate", parser=rate, metavar="N/UNIT", help="How many requests: 50/s, 600/m, 1000/h."),
    ] = None,
    expires_in: Annotated[
        timedelta | None, typer.Option(parser=duration, metavar="DURATION", help="How long the key is valid: 12h, 90d.")
    ] = None,
    as_json: AsJson = False,
    actor: Actor = None,  # type: ignore[assignment]  # its callback gives it a value
) -> None:
    """Make a key and print it. It is stored as a hash and cannot be shown again."""
    from penstock.ledger.members import api_keys

    if not name.strip() or len(name) > 200:
        raise typer.BadParameter("the name must have 1 to 200 characters")
    expires_at = None if expires_in is None else datetime.now(UTC) + expires_in
    with open_ledger() as database:
        text, key = api_keys.add(
            database,
            name.strip(),
            verbs=verb or (),
            kinds=kind or (),
            queues=queue or (),
            tenants=tenant or (),
            requests_per_second=per_second,
            expires_at=expires_at,
            actor=actor,
        )
    if as_json:
        print_json({"key": text, **asdict(key)})
        return
    typer.echo(text)
    echo(f"key {key.id} of {key.name}; it is not shown again", err=True)


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys, the newest first."""
    from penstock.ledger.members import api_keys

    with open_ledger() as database:
        api_key_list = api_keys.every(database)
    now = datetime.now(UTC)
    rows: list[dict[str, Any]] = [asdict(key) | {"holds": key.holds(now)} for key in api_key_list]
    if not as_json:
        for row in rows:
            row |= {scope: ", ".join(row[scope]) if row[scope] else "all" for scope in api_keys.SCOPES}
    columns = ("id", "name", "verbs", "kinds", "queues", "tenants", "requests_per_second", "expires_at", "revoked_at")
    print_rows(rows, columns, as_json=as_json, empty="no keys; make one with penstock gateway keys add NAME")


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As keys list shows it.")],
    actor: Actor = None,  # type: ignore[assignment]
) -> None:
    """Revoke a key. Gateways notice within seconds."""
    from penstock.ledger.members import api_keys

    with open_ledger() as database:
        revoked = api_keys.revoke(database, key_id, actor=actor)
    echo(f"key {revoked.id} of {revoked.name} is revoked")


def _load(module: str) -> Any:
    try:
        return importlib.import_module(f"penstock.producers.gateway.{module}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"the gateway's libraries are not installed ({error}); install penstock[gateway]") from error
