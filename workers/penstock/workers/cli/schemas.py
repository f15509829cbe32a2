"""`penstock schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.config.errors import ConfigError
from penstock.workers.cli.options import Imports
from penstock.workers.discovery import discover

app = typer.Typer(no_args_is_help=True)


@app.callback()
def schema() -> None:
    """Makes `export` a command of its own, so that others can join it."""


@app.command()
def export(
    kinds: Annotated[list[str] | None, typer.Option("--kind", help="Only this kind; may be given repeatedly.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file instead of standard output.")] = None,
    imports: Imports = None,
) -> None:
    """Write the JSON Schema of every kind's fields, with its queue and version: for clients in other languages."""
    import json

    from penstock.schemas.kinds import registry

    discover(imports or ())
    if unknown := [name for name in kinds or () if registry.find(name) is None]:
        raise ConfigError(f"no imported module defines kind {', '.join(unknown)}; import its module with --import")
    wanted = [registry[name] for name in kinds] if kinds else list(registry)
    text = json.dumps({"kinds": {kind.name: _describe(kind) for kind in wanted}}, indent=2, ensure_ascii=False)
    if output is None:
        typer.echo(text)
    else:
        output.write_text(text + "\n", "utf-8")
        typer.echo(f"{output}: {len(wanted)} kinds", err=True)


def _describe(kind: Any) -> dict[str, Any]:
    return {
        "queue": kind.queue,
        "version": kind.version,
        "aliases": list(kind.aliases),
        "priority": kind.priority,
        "delivery": kind.delivery,
        "sensitive": sorted(kind.sensitive),
        "schema": kind.job.model_json_schema(by_alias=True),
    }
