"""`penstock schema`."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.config.errors import ConfigError
from penstock.workers.cli.common.errors import FAILED
from penstock.workers.cli.common.options import AsJson, Imports
from penstock.workers.cli.common.output import echo, print_rows
from penstock.workers.cli.common.session import open_settings
from penstock.workers.handlers.discovery import discover

app = typer.Typer(no_args_is_help=True, help="Export, compare and describe all kinds.")

EXPORT = "kinds.json"
"""The committed export that a git ref without a file means."""

Kinds = Annotated[list[str] | None, typer.Option("--kind", help="Only this kind; may be given repeatedly.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="A file instead of standard output.")]


@app.command()
def export(kinds: Kinds = None, output: Output = None, imports: Imports = None) -> None:
    """Write the JSON Schema of every kind's fields, with its queue and version: for clients in other languages, and for
    `check`."""
    from penstock.schemas.contracts import export as exporting

    _write_json(exporting.export(_find_kinds(kinds, imports)), output)


@app.command()
def check(
    against: Annotated[
        str, typer.Option(metavar="REF_OR_FILE", help=f"An export: a file, REF:FILE, or REF for its {EXPORT}.")
    ],
    accept: Annotated[
        list[str] | None,
        typer.Option(
            "--accept", metavar="KIND", help="A kind whose breaking changes are intended; may be given repeatedly."
        ),
    ] = None,
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """Compare the kinds with an earlier export. The exit code is 1 if jobs that are on their way could not be read."""
    from penstock.schemas.contracts import export as exporting

    old = exporting.read_export(_read(against), against)
    new = exporting.export(_find_kinds(None, imports))["kinds"]
    if unknown := [name for name in accept or () if name not in old]:
        raise ConfigError(f"--accept {', '.join(unknown)}: no such kind in {against}")
    changes = exporting.compare(old, new, accepted=accept or ())
    rows = [
        {name: getattr(change, name) for name in ("severity", "kind", "field", "rule", "message")} for change in changes
    ]
    columns = ["severity", "kind", "field", "rule", "message"]
    print_rows(rows, columns, as_json=as_json, empty=f"{len(old)} kinds of {against} are understood as before")
    if breaking := sum(change.severity == "breaking" for change in changes):
        echo(f"penstock: {breaking} breaking changes since {against}", err=True)
        raise typer.Exit(FAILED)


@app.command()
def catalog(kinds: Kinds = None, output: Output = None, imports: Imports = None) -> None:
    """Write a page of all kinds, their fields and options: HTML if the file is named .html, else Markdown."""
    from penstock.schemas.contracts import catalog as pages
    from penstock.schemas.contracts import export as exporting

    exported = exporting.export(_find_kinds(kinds, imports))["kinds"]
    html = output is not None and output.suffix in (".html", ".htm")
    _write(pages.page(exported) if html else pages.markdown(exported), output)


@app.command()
def asyncapi(
    title: Annotated[str, typer.Option(help="The title of the application.")] = "Jobs",
    version: Annotated[str, typer.Option(help="The version of the application.")] = "1.0.0",
    kinds: Kinds = None,
    output: Output = None,
    imports: Imports = None,
) -> None:
    """Write an AsyncAPI 3 document of all kinds, for the broker and prefix of the settings."""
    from penstock.schemas.contracts.asyncapi import document

    settings = open_settings()
    chosen = _find_kinds(kinds, imports)
    broker_url, prefix = settings.broker_url, settings.prefix
    _write_json(document(chosen, title=title, version=version, broker_url=broker_url, prefix=prefix), output)


def _find_kinds(names: list[str] | None, imports: list[str] | None) -> list[Any]:
    from penstock.schemas.jobs.kind import registry

    discover(imports or ())
    if unknown := [name for name in names or () if registry.find(name) is None]:
        raise ConfigError(
            f"no imported module defines kind {', '.join(unknown)}; import its module with --import, or name its "
            "application with --celery, --dramatiq or --rq"
        )
    return [registry[name] for name in names] if names else list(registry)


def _read(against: str) -> str:
    """The text of a file, else of one as git has it.

    Raises:
        ConfigError: there is neither.
    """
    if Path(against).is_file():
        return Path(against).read_text("utf-8")
    name = against if ":" in against else f"{against}:./{EXPORT}"
    # Running the code of a worktree of the ref would silently import the installed, new code.
    command = ["git", "show", "--end-of-options", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)  # noqa: S603
        return done.stdout
    except FileNotFoundError:
        raise ConfigError(f"{against}: no such file, and git is not installed") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["git show failed"])[0]
        raise ConfigError(
            f"{against}: no such file, and git has no {name} ({reason}); commit one: penstock schema export -o {EXPORT}"
        ) from None


def _write_json(value: Any, output: Path | None) -> None:
    import json

    _write(json.dumps(value, indent=2, ensure_ascii=False) + "\n", output)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, "utf-8")
        echo(f"{output}: written", err=True)
