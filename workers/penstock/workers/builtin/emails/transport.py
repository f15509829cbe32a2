"""Outgoing mail: an SMTP server with kept connections, or a local maildir folder.

`open_mailer` picks one by `smtp_url`: `smtp://user:password@host:587?starttls=true`, `smtps://…`, `maildir:folder`.
Options: `starttls=true`, `timeout=30` (seconds), `cafile=path` (additional certificate authorities).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import re
import smtplib
import socket
import ssl
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from penstock.config.errors import ConfigError, PenstockError
from penstock.config.private_files import append_private, make_private_folder, tighten
from penstock.config.settings import Settings
from penstock.workers.handlers.resources import provides


class MailRefused(PenstockError):
    """The server refused the mail or every recipient for good (5xx)."""


class MailUnavailable(PenstockError):
    """The server cannot be reached, put the mail off (4xx), or does not let us in. Trying again may help."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """Delivery of a mail that at least one recipient got.

    Attributes:
        refused: recipients the server did not take, with its reply: code and text.
        already: an earlier attempt had delivered it.
    """

    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    already: bool = False


class Mailer(ABC):
    """Safe to use from several threads."""

    @abstractmethod
    def deliver(self, message: EmailMessage, sender: str, recipients: Sequence[str]) -> Delivered:
        """Hand over one mail, the recipients as bare addresses `a@b`.

        Raises:
            MailRefused, MailUnavailable: no recipient got it, or (after a lost connection) that is not known.
        """

    def close(self) -> None:  # noqa: B027  # nothing to close is fine
        """Close the connections."""


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
        return MaildirMailer(Path(unquote(parts.path)))
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


class SmtpMailer(Mailer):
    """Keeps up to `connections` connections. One that went stale is found out by NOOP and replaced."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: str | None,
        user: str | None,
        password: str,
        timeout_seconds: float,
        context: ssl.SSLContext,
        connections: int,
    ) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._user, self._password = user, password
        self._timeout, self._context = timeout_seconds, context
        self._slots = threading.BoundedSemaphore(connections)
        self._idle: queue.LifoQueue[smtplib.SMTP] = queue.LifoQueue()

    def deliver(self, message: EmailMessage, sender: str, recipients: Sequence[str]) -> Delivered:
        with self._slots:
            try:
                refused = self._send(self._idle_connection() or self._new_connection(), message, sender, recipients)
            except smtplib.SMTPSenderRefused as error:
                # 421 before the mail began: many servers take only so many mails on one connection.
                if error.smtp_code != 421:
                    raise self._translate_error(error) from error
                try:
                    refused = self._send(self._new_connection(), message, sender, recipients)
                except smtplib.SMTPSenderRefused as second_error:
                    raise self._translate_error(second_error) from second_error
        return Delivered({address: (code, _text(reply)) for address, (code, reply) in refused.items()})

    def close(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                connection = self._idle.get_nowait()
                with contextlib.suppress(smtplib.SMTPException, OSError):
                    connection.quit()
                connection.close()

    def _send(
        self, connection: smtplib.SMTP, message: EmailMessage, sender: str, recipients: Sequence[str]
    ) -> dict[str, tuple[int, bytes]]:
        try:
            refused = connection.send_message(message, sender, list(recipients))
        except BaseException as error:
            connection.close()  # after a failure the state of the dialogue is unknown
            if isinstance(error, smtplib.SMTPSenderRefused):
                raise
            if isinstance(error, (smtplib.SMTPException, OSError)):
                raise self._translate_error(error) from error
            raise
        self._idle.put(connection)
        return refused

    def _idle_connection(self) -> smtplib.SMTP | None:
        with contextlib.suppress(queue.Empty):
            while True:
                connection = self._idle.get_nowait()
                # Servers close idle connections, and only a NOOP shows it. A mail lost on a closed connection could not
                # be distinguished from a delivered one.
                with contextlib.suppress(smtplib.SMTPException, OSError):
                    if connection.noop()[0] == 250:
                        return connection
                connection.close()
        return None

    def _new_connection(self) -> smtplib.SMTP:
        try:
            return self._connect()
        except (smtplib.SMTPException, OSError) as error:
            # Even a 5xx here is not the mail's fault: an operator can correct a wrong password.
            raise MailUnavailable(f"{self._host}:{self._port}: {_reason(error)}") from error

    def _connect(self) -> smtplib.SMTP:
        name = socket.gethostname() or "localhost"  # smtplib would ask DNS for it, which can take half a minute
        if self._tls == "implicit":
            connection: smtplib.SMTP = smtplib.SMTP_SSL(
                self._host, self._port, name, timeout=self._timeout, context=self._context
            )
        else:
            connection = smtplib.SMTP(self._host, self._port, name, timeout=self._timeout)
        try:
            if self._tls == "starttls":
                connection.starttls(context=self._context)
            if self._user is not None:
                connection.login(self._user, self._password)
        except BaseException:
            connection.close()
            raise
        return connection

    def _translate_error(self, error: Exception) -> PenstockError:
        where = f"{self._host}:{self._port}"
        match error:
            case smtplib.SMTPRecipientsRefused():
                replies = [f"{who}: {code} {_text(why)}" for who, (code, why) in error.recipients.items()]
                for_good = all(500 <= code < 600 for code, _ in error.recipients.values())
                return (MailRefused if for_good else MailUnavailable)(f"{where} refused {'; '.join(replies)}")
            case smtplib.SMTPResponseException() if 500 <= error.smtp_code < 600:
                return MailRefused(f"{where}: {_reason(error)}")
            case smtplib.SMTPNotSupportedError():  # such as an address in other letters, and a server without SMTPUTF8
                return MailRefused(f"{where}: {error}")
            case _:
                return MailUnavailable(f"{where}: {_reason(error)}")


class MaildirMailer(Mailer):
    """Writes mails into `folder/new`, as local delivery does, for their owner alone.

    One with a Message-ID that lies there is left as it is.

    https://cr.yp.to/proto/maildir.html
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def deliver(self, message: EmailMessage, sender: str, recipients: Sequence[str]) -> Delivered:
        new, read, temporary = (self.folder / name for name in ("new", "cur", "tmp"))
        name = f"{safe_name(str(message['Message-ID']))}.penstock"
        part = temporary / f"{uuid.uuid4().hex}.penstock"
        from email import policy  # late, as in `[emails]`

        content = message.as_bytes(policy=policy.SMTP.clone(linesep="\n", utf8=True))
        envelope = f"Return-Path: <{sender}>\n" + "".join(f"Delivered-To: {who}\n" for who in recipients)
        try:
            for folder in (new, read, temporary):
                make_private_folder(folder)
            tighten(self.folder)
            # A mail reader moves what it has seen to cur/ and adds flags to its name.
            if any(read.glob(f"{name}*")):
                return Delivered(already=True)
            with append_private(part) as file:
                file.write(envelope.encode() + content)
            try:
                os.link(part, new / name)  # unlike a rename, this fails where the name is taken
            except FileExistsError:
                return Delivered(already=True)
            finally:
                part.unlink()
        except OSError as error:
            raise MailUnavailable(f"maildir {self.folder}: {error}") from error
        return Delivered()


def safe_name(text: str) -> str:
    """The text where it can be part of a file's name or a Message-ID as it is, else its hash."""
    inner = text.strip("<>")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.@_-]{0,150}", inner) and ".." not in inner and inner[-1] != ".":
        return inner
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _text(reply: bytes | str) -> str:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)


def _reason(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{error.smtp_code} {_text(error.smtp_error)}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
