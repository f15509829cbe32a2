"""Flower, for the workers of both engines: it knows them by Celery's events and remote control, which both speak.

It keeps its history in `var/flower` and shows it again after a restart. Flower's own settings (`FLOWER_URL_PREFIX`,
`FLOWER_READ_ONLY`, …) hold as well; the queue lengths on its broker page need no management plugin of RabbitMQ's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
from pathlib import Path

from penstock.config.errors import ConfigError
from penstock.config.logging import setup_logging
from penstock.config.settings import load_settings

BASIC_AUTH = "PENSTOCK_FLOWER_BASIC_AUTH"
FURTHER_AUTH = "FLOWER_BASIC_AUTH"
USER = "penstock"
FOLDER = Path("var/flower")


def run_flower(
    address: str = "127.0.0.1", port: int = 5555, basic_auth: str | None = None, *, folder: Path = FOLDER
) -> int:
    """Serve Flower until SIGTERM or SIGINT. Returns the exit code.

    Arguments:
        basic_auth: `user:password`; None: as `PENSTOCK_FLOWER_BASIC_AUTH` says, else the user `penstock` with a new
            password, which is printed, unless `FLOWER_AUTH` names who may log in by OAuth. Flower can cancel jobs and
            stop workers, so it never runs without a login. `FLOWER_BASIC_AUTH` has further ones, with commas between.
        folder: where it keeps its history.

    Raises:
        ConfigError: the login has another form, the broker URL is wrong, or Flower is not installed.
    """
    logins = [login for login in (basic_auth or os.environ.get(BASIC_AUTH), *_further_logins()) if login]
    for login in logins:
        user, _, password = login.partition(":")
        if not (user and password):
            raise ConfigError(f"{BASIC_AUTH} must be user:password, and so must each login of {FURTHER_AUTH}")
    if not logins and not os.environ.get("FLOWER_AUTH"):
        logins = [_generated(address, port)]
    try:
        from penstock.workers.engines.celery.flower import serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"Flower is not installed ({error}); install penstock[flower]") from error
    settings = load_settings()
    if not logging.getLogger().handlers:
        with contextlib.suppress(ImportError):  # structlog comes with penstock[cli]
            setup_logging(fmt=settings.log_format)
    return serve(settings, address=address, port=port, logins=logins, folder=folder)


def _further_logins() -> list[str]:
    return os.environ.get(FURTHER_AUTH, "").split(",")


def _generated(address: str, port: int) -> str:
    login = f"{USER}:{secrets.token_urlsafe(12)}"
    # Printed, not logged: logs are kept and shipped.
    sys.stdout.write(f"Flower on http://{address}:{port} asks for {login.replace(':', ' / ')}\n")
    sys.stdout.flush()
    return login
