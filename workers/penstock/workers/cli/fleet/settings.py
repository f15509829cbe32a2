"""`penstock settings`: what is in force, and where it comes from."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.workers.cli.common.options import AsJson
from penstock.workers.cli.common.output import print_rows
from penstock.workers.cli.common.session import open_settings


def add_to(app: typer.Typer) -> None:
    app.command()(settings)


def settings(
    changed: Annotated[bool, typer.Option("--changed", help="Only those that are not the default.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the settings in force here, without secrets, each with its source: default, file and line, or variable."""
    from penstock.config.settings import settings_in_force

    rows = [
        {"setting": setting.name, "value": setting.value, "source": setting.source}
        for setting in settings_in_force(open_settings())
        if not changed or setting.source != "default"
    ]
    print_rows(rows, ("setting", "value", "source"), as_json=as_json, empty="all have their defaults")
