"""An upload on its way from the storage to a file of ours, checked for size and media type."""

from __future__ import annotations

import codecs
import hashlib
from dataclasses import dataclass
from pathlib import Path

from penstock.config.errors import InvalidKey, ObjectNotFound
from penstock.config.sections.builtin.uploads import UploadPolicy
from penstock.producers.storage import CHUNK
from penstock.schemas.builtin.uploads import ProcessUpload
from penstock.workers.builtin.uploads import media_types
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.returns import Permanent
from penstock.workers.handlers.storage import Storage


@dataclass(frozen=True, slots=True)
class Received:
    """The upload in a file of ours; its size is in bytes."""

    path: Path
    sha256: str
    size: int
    media_type: str


def receive(job: ProcessUpload, ctx: Context, storage: Storage, policy: UploadPolicy, folder: Path) -> Received:
    """Stream the object to disk; hash it on the way, and stop at the first byte that breaks the policy."""
    limit = min(policy.max_bytes, job.max_bytes or policy.max_bytes)
    path = folder / "upload"
    digest, size, head, media_type = hashlib.sha256(), 0, b"", ""
    try:
        with storage.read(job.key) as stream, path.open("wb") as file:
            while chunk := stream.read(CHUNK):
                ctx.check_cancelled()
                size += len(chunk)
                if size > limit:
                    raise Permanent(f"{job.key}: too large: max_bytes is {limit}, found more")
                digest.update(chunk)
                file.write(chunk)
                if not media_type:
                    head += chunk[: media_types.HEAD - len(head)]
                    if len(head) == media_types.HEAD:
                        media_type = _checked_type(head, False, job, policy)
    except (ObjectNotFound, InvalidKey) as error:
        raise Permanent(str(error)) from error
    if size == 0:
        raise Permanent(f"{job.key}: the object is empty")
    media_type = media_type or _checked_type(head, True, job, policy)
    if media_type.startswith("text/") and not _all_text(path):
        raise Permanent(f"{job.key}: begins as {media_type}, but is not UTF-8 text throughout")
    if (second := media_types.second_type(path, media_type)) is not None:
        raise Permanent(
            f"{job.key}: the content is {media_type} and {second} at once; such a file passes the checks for the one, "
            "and is opened as the other"
        )
    return Received(path, digest.hexdigest(), size, media_type)


def _checked_type(head: bytes, complete: bool, job: ProcessUpload, policy: UploadPolicy) -> str:
    media_type = media_types.sniff(head, complete=complete)
    for allowed in (policy.media_types, job.media_types):
        if allowed is not None and not media_types.accepted(media_type, allowed):
            raise Permanent(f"{job.key}: the content is {media_type}; accepted is {', '.join(allowed) or 'nothing'}")
    return media_type


def _all_text(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while chunk := file.read(CHUNK):
                if b"\x00" in chunk:
                    return False
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True
