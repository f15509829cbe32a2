"""Attachments: read from the storage while the mail is written, never all in memory."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.config.errors import InvalidKey, ObjectNotFound, StorageError
from penstock.schemas.builtin.emails import Attachment
from penstock.workers.builtin.emails.flattened import Mail
from penstock.workers.handlers.returns import Permanent
from penstock.workers.handlers.storage import Storage

_BLOCK = 256 * 1024


def attach(mail: Mail, attachments: tuple[Attachment, ...], storage: Storage, limit: int) -> None:
    """Add objects of the storage to a mail.

    Arguments:
        limit: for all together, in bytes.

    Raises:
        Permanent: one is missing, or they are too large; StorageError.
    """
    left = limit
    for attachment in attachments:
        try:
            stored = storage.find(attachment.key)
        except InvalidKey as error:
            raise Permanent(f"attachment: {error}") from error
        if stored is None:
            raise Permanent(f"attachment {attachment.key!r} is not in the storage")
        left -= stored.size
        if left < 0:
            raise Permanent(f"attachment {attachment.key!r}: max_attachment_bytes is {limit} for all together")
        main, _, sub = (attachment.media_type or stored.media_type).partition(";")[0].partition("/")
        # add_attachment wants a part of type message to be a message, and has no use for a nested multipart.
        if main in ("message", "multipart") or not sub:
            main, sub = "application", "octet-stream"
        name = attachment.filename or attachment.key.rpartition("/")[2]
        mail.message.add_attachment(b"", maintype=main, subtype=sub.strip(), filename=name)
        *_, part = mail.message.iter_attachments()
        mail.fill(part, _blocks(storage, attachment.key, stored.size))


def _blocks(storage: Storage, key: str, size: int) -> Iterator[bytes]:
    try:
        with storage.read(key) as stream:
            while block := stream.read(_BLOCK):
                size -= len(block)
                yield block
    except ObjectNotFound as error:
        raise Permanent(f"attachment: {error}") from error
    if size != 0:
        raise StorageError(f"attachment {key!r} changed while it was read")
