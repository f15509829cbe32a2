"""Who acts, for the audit log."""

from __future__ import annotations

import getpass
import os
from typing import Annotated

import typer


def this_user(actor: str | None) -> str:
    """The actor that was named, else the operating system's name of who runs this."""
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
        help="Who does this, for the audit log.",
    ),
]
"""Give it the default None: the callback turns that into a name."""
