"""Flower, for the workers of both engines: it knows them by Celery's events and remote control, which both speak.

It keeps nothing: jobs are the ledger's. Flower's own settings (`FLOWER_READ_ONLY`, `FLOWER_URL_PREFIX`, …) hold as
well; the queue lengths on its broker page need no management plugin of RabbitMQ's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from penstock.config.errors import ConfigError
from penstock.config.logging import setup_logging
from penstock.config.sections.console import usable
from penstock.config.settings import load_settings
from penstock.schemas.jobs.overrides import override_kinds
from penstock.workers.handlers.discovery import discover

BASIC_AUTH = "PENSTOCK_FLOWER_BASIC_AUTH"
FURTHER_AUTH = "FLOWER_BASIC_AUTH"
URL_PREFIX = "FLOWER_URL_PREFIX"
USER = "penstock"
FOLDER = Path("var/flower")
_PREFIX = re.compile(r"([A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*)?")
"""Nothing that means something else in a pattern of Tornado's but a dot, or in a page."""


def run_flower(
    address: str = "127.0.0.1",
    port: int = 5555,
    basic_auth: str | None = None,
    *,
    url_prefix: str | None = None,
    folder: Path = FOLDER,
    imports: Sequence[str] = (),
) -> int:
    """Serve Flower until SIGTERM or SIGINT. Returns the exit code.

    Arguments:
        basic_auth: `user:password`; None: as `PENSTOCK_FLOWER_BASIC_AUTH` says, else the user `penstock` with a new
            password, which is printed, unless `[console]` or `FLOWER_AUTH` says who may log in. Flower can cancel jobs
            and stop workers, so it never runs without a login. `FLOWER_BASIC_AUTH` has further ones, with commas
            between.
        url_prefix: the path below which all of its pages are, such as `flower`, for a proxy that passes a part of its
            paths on; None: as `FLOWER_URL_PREFIX` says, else the root.
        folder: where earlier versions kept jobs; their files are deleted.
        imports: modules with kinds. Fields and results of kinds that none of them defines are hidden.

    Raises:
        ConfigError: the login or the prefix has another form, the broker URL is wrong, or Flower is not installed.
    """
    prefix = (os.environ.get(URL_PREFIX, "") if url_prefix is None else url_prefix).strip("/")
    if not _PREFIX.fullmatch(prefix):
        raise ConfigError(f"{prefix!r} cannot be the prefix of Flower's URLs; write it as flower, or as tools/flower")
    logins = [login for login in (basic_auth or os.environ.get(BASIC_AUTH), *_further_logins()) if login]
    for login in logins:
        user, _, password = login.partition(":")
        if not (user and password):
            raise ConfigError(f"{BASIC_AUTH} must be user:password, and so must each login of {FURTHER_AUTH}")
    settings = load_settings()
    override_kinds(settings.kinds)
    if not logins and not usable(settings.console, os.environ):
        logins = [_generated(f"http://{address}:{port}/{prefix and prefix + '/'}")]
    try:
        from penstock.workers.engines.celery.flower.serving import serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"Flower is not installed ({error}); install penstock[flower]") from error
    discover(imports)
    if not logging.getLogger().handlers:
        with contextlib.suppress(ImportError):  # structlog comes with penstock[cli]
            setup_logging(fmt=settings.log_format)
    return serve(settings, address=address, port=port, logins=logins, url_prefix=prefix, folder=folder)


def _further_logins() -> list[str]:
    return os.environ.get(FURTHER_AUTH, "").split(",")


def _generated(url: str) -> str:
    login = f"{USER}:{secrets.token_urlsafe(12)}"
    # Printed, not logged: logs are kept and shipped.
    sys.stdout.write(f"Flower on {url} asks for {login.replace(':', ' / ')}\n")
    sys.stdout.flush()
    return login
