"""`penstock console`: passwords of the operator's console."""

from __future__ import annotations

import sys

import typer

from penstock.config.sections.passwords import hash_password
from penstock.workers.cli.common.output import echo

app = typer.Typer(no_args_is_help=True)


@app.callback()
def console() -> None:
    """Passwords of the operator's console, which `penstock flower` serves."""


@app.command("hash-password")
def print_hash() -> None:
    """Ask for a password, or read a line of standard input, and print its hash for [[console.users]].

    It is never an argument, which other users of the machine could see.
    """
    if sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    try:
        typer.echo(hash_password(password))
    except ValueError as error:
        echo(f"penstock: {error}", err=True)
        raise typer.Exit(2) from None
