"""`SmtpMailer`: an SMTP server with kept connections."""

from __future__ import annotations

import contextlib
import queue
import smtplib
import socket
import ssl
from collections.abc import Sequence

from penstock.config.errors import PenstockError
from penstock.workers.builtin.emails.addresses import ascii_mailbox
from penstock.workers.builtin.emails.flattened import Flattened
from penstock.workers.builtin.emails.mailers.mailer import Build, Delivered, Mailer, MailRefused, MailUnavailable
from penstock.workers.builtin.emails.mailers.replies import QUOTA_WAIT, is_for_good, is_quota

NO_SMTPUTF8 = (553, "5.6.7 the address has letters beyond ASCII, and the server does not offer SMTPUTF8")
"""Reply in place of the server's (RFC 6531, section 3.7.4.2)."""


class _Connection(smtplib.SMTP):
    """Sends a mail from its file, so that it is not in memory while the network takes it."""

    def data(self, msg: object) -> tuple[int, bytes]:
        if not isinstance(msg, Flattened):
            raise TypeError(f"send a Flattened, not {type(msg).__name__}")
        self.putcmd("data")
        code, reply = self.getreply()
        if code != 354:
            raise smtplib.SMTPDataError(code, reply)
        for block in msg.dotted():
            self.send(block)
        self.send(b".\r\n")
        return self.getreply()


class _TlsConnection(_Connection, smtplib.SMTP_SSL): ...


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
        super().__init__(connections)
        self._host, self._port, self._tls = host, port, tls
        self._user, self._password = user, password
        self._timeout, self._context = timeout_seconds, context
        self._idle: queue.LifoQueue[smtplib.SMTP] = queue.LifoQueue()

    def _deliver(self, build: Build, sender: str, recipients: Sequence[str]) -> Delivered:
        mail = build()
        connection = self._idle_connection() or self._new_connection()
        smtputf8 = connection.has_extn("smtputf8")
        addresses = {ascii_mailbox(who): who for who in recipients}
        refused = {} if smtputf8 else {who: NO_SMTPUTF8 for who in addresses if not who.isascii()}
        try:
            if len(refused) == len(addresses) or not (smtputf8 or ascii_mailbox(sender).isascii()):
                raise MailRefused(f"{self._host}:{self._port}: {NO_SMTPUTF8[0]} {NO_SMTPUTF8[1]}")
            flattened = mail.flatten(smtputf8=smtputf8)
        except BaseException:
            self._idle.put(connection)  # nothing was said on it
            raise
        with flattened:
            takers = [who for who in addresses if who not in refused]
            try:
                replies = self._send(connection, flattened, sender, takers)
            except smtplib.SMTPSenderRefused as error:
                # 421 before the mail began: many servers take only so many mails on one connection.
                if error.smtp_code != 421:
                    raise self._translate_error(error) from error
                try:
                    replies = self._send(self._new_connection(), flattened, sender, takers)
                except smtplib.SMTPSenderRefused as second_error:
                    raise self._translate_error(second_error) from second_error
        refused |= {who: (code, _text(reply)) for who, (code, reply) in replies.items()}
        return Delivered({addresses[who]: reply for who, reply in refused.items()})

    def check(self) -> str:
        connection = self._new_connection()
        extensions = [name.upper() for name in ("size", "8bitmime", "smtputf8") if connection.has_extn(name)]
        self._idle.put(connection)
        protection = {None: "not encrypted", "starttls": "STARTTLS", "implicit": "TLS"}[self._tls]
        login = "no login" if self._user is None else f"logged in as {self._user}"
        return f"{self._host}:{self._port}, {protection}, {login}; {', '.join(extensions) or 'no extensions'}"

    def close(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                connection = self._idle.get_nowait()
                with contextlib.suppress(smtplib.SMTPException, OSError):
                    connection.quit()
                connection.close()

    def _send(
        self, connection: smtplib.SMTP, mail: Flattened, sender: str, recipients: list[str]
    ) -> dict[str, tuple[int, bytes]]:
        sender = ascii_mailbox(sender)
        is_international = mail.is_international or not all(map(str.isascii, (sender, *recipients)))
        options = ["SMTPUTF8", "BODY=8BITMIME"] if is_international else []
        try:
            refused = connection.sendmail(sender, recipients, mail, options)  # type: ignore[arg-type]
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
            connection: smtplib.SMTP = _TlsConnection(
                self._host, self._port, name, timeout=self._timeout, context=self._context
            )
        else:
            connection = _Connection(self._host, self._port, name, timeout=self._timeout)
        try:
            if self._tls == "starttls":
                connection.starttls(context=self._context)
            if self._user is not None:
                connection.login(self._user, self._password)
            connection.ehlo_or_helo_if_needed()
        except BaseException:
            connection.close()
            raise
        return connection

    def _translate_error(self, error: Exception) -> PenstockError:
        if isinstance(error, smtplib.SMTPRecipientsRefused):
            refused = {who: (code, _text(reply)) for who, (code, reply) in error.recipients.items()}
            replies, reason = (
                list(refused.values()),
                "refused " + "; ".join(f"{who}: {code} {reply}" for who, (code, reply) in refused.items()),
            )
        else:
            replies = []
            if isinstance(error, smtplib.SMTPResponseException):
                replies.append((error.smtp_code, _text(error.smtp_error)))
            reason = _reason(error)
        message = f"{self._host}:{self._port}: {reason}"
        if replies and all(is_for_good(*reply) for reply in replies):
            return MailRefused(message)
        return MailUnavailable(message, after=QUOTA_WAIT if any(is_quota(*reply) for reply in replies) else None)


def _text(reply: bytes | str) -> str:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)


def _reason(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{error.smtp_code} {_text(error.smtp_error)}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
