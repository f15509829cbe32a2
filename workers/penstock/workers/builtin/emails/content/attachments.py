"""Attachments: read from the storage while the mail is written, never all in memory."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import EmailMessage, Message
from typing import Any

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
    # Those inside the HTML first: once the mail has an attachment, its HTML is one part of several.
    attachments = tuple(sorted(attachments, key=lambda attachment: attachment.content_id is None))
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
        part = _add(mail.message, f"{main}/{sub.strip()}", name, attachment.content_id)
        mail.fill(part, _blocks(storage, attachment.key, stored.size))


def _add(message: EmailMessage, media_type: str, name: str, content_id: str | None) -> Message[Any, Any]:
    main, _, sub = media_type.partition("/")
    if content_id is None:
        message.add_attachment(b"", maintype=main, subtype=sub, filename=name)
        *_, part = message.iter_attachments()
        return part
    html = message.get_body(("html",))
    if html is None:
        raise Permanent(f"attachment {name!r} has content_id {content_id!r}, and the mail has no HTML to show it in")
    related = message.get_body(("related",)) or html
    related.add_related(b"", maintype=main, subtype=sub, filename=name, disposition="inline", cid=f"<{content_id}>")
    return list((message.get_body(("related",)) or message).iter_parts())[-1]


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
