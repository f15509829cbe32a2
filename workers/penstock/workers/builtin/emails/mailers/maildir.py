"""`MaildirMailer`: mail into a local folder."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from penstock.config.private_files import append_private, make_private_folder, tighten
from penstock.workers.builtin.emails.addresses import safe_name
from penstock.workers.builtin.emails.mailers.mailer import Build, Delivered, Mailer, MailUnavailable


class MaildirMailer(Mailer):
    """Writes mails into `folder/new`, as local delivery does, for their owner alone.

    One with a Message-ID that lies there is left as it is.

    https://cr.yp.to/proto/maildir.html
    """

    def __init__(self, folder: Path, connections: int = 4) -> None:
        super().__init__(connections)
        self.folder = folder.absolute()

    def _deliver(self, build: Build, sender: str, recipients: Sequence[str]) -> Delivered:
        mail = build()
        new, read, temporary = (self.folder / name for name in ("new", "cur", "tmp"))
        name = f"{safe_name(str(mail.message['Message-ID']))}.penstock"
        part = temporary / f"{uuid.uuid4().hex}.penstock"
        envelope = f"Return-Path: <{sender}>\n" + "".join(f"Delivered-To: {who}\n" for who in recipients)
        try:
            for folder in (new, read, temporary):
                make_private_folder(folder)
            tighten(self.folder)
            # A mail reader moves what it has seen to cur/ and adds flags to its name.
            if any(read.glob(f"{name}*")):
                return Delivered(already=True)
            with mail.flatten(smtputf8=True, linesep="\n") as flattened, append_private(part) as file:
                file.write(envelope.encode())
                file.writelines(flattened.blocks())
            try:
                os.link(part, new / name)  # unlike a rename, this fails where the name is taken
            except FileExistsError:
                return Delivered(already=True)
            finally:
                part.unlink()
        except OSError as error:
            raise MailUnavailable(f"maildir {self.folder}: {error}") from error
        return Delivered()

    def check(self) -> str:
        try:
            for folder in ("new", "cur", "tmp"):
                make_private_folder(self.folder / folder)
        except OSError as error:
            raise MailUnavailable(f"maildir {self.folder}: {error}") from error
        return f"maildir {self.folder}"
