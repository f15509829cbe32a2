"""The actor of a command, for the audit log."""

from __future__ import annotations

import getpass
import os
from typing import Annotated

import typer


def this_user(actor: str | None) -> str:
    """The named actor, else the user name of the operating system."""
    if actor is not None and actor.strip():
        return actor.strip()
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return f"uid {os.getuid()}"


Actor = Annotated[
    str,
    typer.Option(
        "--actor",
        envvar="PENSTOCK_ACTOR",
        metavar="NAME",
        callback=this_user,
        show_default="the user's name",
        help="The person or program that does this, for the audit log.",
    ),
]
"""Use None as the default: the callback turns it into a name."""
