"""Outgoing mail: an SMTP server with kept connections, or a local maildir folder.

`open_mailer` picks one by `smtp_url`: `smtp://user:password@host:587?starttls=true`, `smtps://…`, `maildir:folder`.
Options: `starttls=true`, `timeout=30` (seconds), `cafile=path` (additional certificate authorities).
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from penstock.config.errors import ConfigError
from penstock.config.settings import Settings
from penstock.workers.builtin.emails.mailers.maildir import MaildirMailer
from penstock.workers.builtin.emails.mailers.mailer import Mailer
from penstock.workers.builtin.emails.mailers.smtp import SmtpMailer
from penstock.workers.handlers.resources import provides


@provides
def open_mailer(settings: Settings) -> Iterator[Mailer]:
    """The mailer of `smtp_url`. Raises ConfigError."""
    mailer = make_mailer(settings.smtp_url, connections=settings.emails.connections)
    try:
        yield mailer
    finally:
        mailer.close()


def make_mailer(url: str, *, connections: int = 4) -> Mailer:
    """Raises ConfigError where the URL or an option of it is wrong."""
    parts = urlsplit(url)
    if parts.scheme == "maildir" and parts.path and parts.netloc in ("", "localhost"):
        return MaildirMailer(Path(unquote(parts.path)), connections)
    if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
        raise ConfigError("smtp_url: use smtp://host, smtps://host or maildir:folder")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if unknown := sorted(set(options) - {"starttls", "timeout", "cafile"}):
        raise ConfigError(f"smtp_url: unknown option {unknown[0]!r}; there are starttls, timeout and cafile")
    if options.get("starttls", "false") not in ("true", "false"):
        raise ConfigError("smtp_url: starttls must be true or false")
    try:
        port, timeout = parts.port, float(options.get("timeout", "30"))
        context = ssl.create_default_context()
        if "cafile" in options:
            context.load_verify_locations(options["cafile"])
    except (ValueError, OSError) as error:
        raise ConfigError(f"smtp_url: {error}") from error
    if not 0 < timeout <= 600:
        raise ConfigError("smtp_url: timeout must lie between 0 and 600 seconds")
    starttls = options.get("starttls") == "true"
    default_port = 465 if parts.scheme == "smtps" else 587 if starttls else 25
    return SmtpMailer(
        parts.hostname,
        port or default_port,
        tls="implicit" if parts.scheme == "smtps" else "starttls" if starttls else None,
        user=None if parts.username is None else unquote(parts.username),
        password=unquote(parts.password or ""),
        timeout_seconds=timeout,
        context=context,
        connections=connections,
    )
