"""`upload.process`: the checks, the thumbnails and the metadata of an upload."""

from __future__ import annotations

import codecs
import hashlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from penstock.config.errors import InvalidKey, ObjectNotFound
from penstock.config.sections.builtin.uploads import UploadsSettings
from penstock.config.settings import Settings
from penstock.producers.storage import CHUNK
from penstock.schemas.builtin.uploads import ProcessUpload, Thumbnail, UploadProcessed
from penstock.workers.builtin.uploads import media_types
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import handles
from penstock.workers.handlers.returns import Permanent
from penstock.workers.handlers.storage import Storage, storage_of

if TYPE_CHECKING:
    from penstock.workers.builtin.uploads.images import Picture, UploadedImage


@dataclass(frozen=True, slots=True)
class _Received:
    """The upload in a file of ours, checked for size and media type."""

    path: Path
    sha256: str
    size: int
    media_type: str


@handles(ProcessUpload)
def process_upload(job: ProcessUpload, ctx: Context, storage: Storage, settings: Settings) -> UploadProcessed:
    """Check an upload and write its results under `uploads/sha256/ab/cd/<hash>/`, for a tenant below its folder.

    Results are named by the content's hash and `metadata.json` comes last, so a second run finds them and writes
    nothing; after a crash in between it writes the same again.

    Raises:
        Permanent: the object is missing or not its tenant's, or it breaks the policy; says which limit and what was
            found.
        StorageError: worth another try.
    """
    from penstock.workers.builtin.uploads.images import FORMATS, UploadedImage  # late: Pillow takes a megabyte

    policy, storage = settings.uploads, storage_of(ctx.tenant, storage, settings)
    with tempfile.TemporaryDirectory(prefix="penstock-upload-") as folder:
        received = _receive(job, ctx, storage, policy, Path(folder))
        ctx.progress(1, 3, "received")
        base = f"{storage.root}{policy.prefix}/sha256/{received.sha256[:2]}/{received.sha256[2:4]}/{received.sha256}"
        image = None
        if received.media_type in FORMATS:
            image = UploadedImage(received.path, received.media_type, policy.max_pixels)
        picture = image.measure() if image else None
        if earlier := _earlier_result(storage, base, picture, policy):
            return earlier
        result = _write(storage, base, received, image, picture, policy, ctx)
        storage.write(result.metadata, io.BytesIO(result.model_dump_json().encode()), "application/json")
        ctx.progress(3, 3, "stored")
        return result


def _receive(job: ProcessUpload, ctx: Context, storage: Storage, policy: UploadsSettings, folder: Path) -> _Received:
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
    return _Received(path, digest.hexdigest(), size, media_type)


def _checked_type(head: bytes, complete: bool, job: ProcessUpload, policy: UploadsSettings) -> str:
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


def _earlier_result(
    storage: Storage, base: str, picture: Picture | None, policy: UploadsSettings
) -> UploadProcessed | None:
    """The result of an earlier run, if it is complete and was made under the same settings."""
    key = f"{base}/metadata.json"
    try:
        with storage.read(key) as stream:
            result = UploadProcessed.model_validate_json(stream.read())
    except (ObjectNotFound, ValidationError):
        return None
    sides = policy.thumbnails if picture else ()
    keeps = picture is None or policy.keep_original
    if tuple(thumbnail.side for thumbnail in result.thumbnails) != sides or (result.original is None) == keeps:
        return None
    keys = [result.original, result.clean, *(thumbnail.key for thumbnail in result.thumbnails)]
    try:
        return result if all(storage.find(key) for key in keys if key) else None
    except InvalidKey:  # someone else wrote it: it names objects of another tenant
        return None


def _write(
    storage: Storage,
    base: str,
    received: _Received,
    image: UploadedImage | None,
    picture: Picture | None,
    policy: UploadsSettings,
    ctx: Context,
) -> UploadProcessed:
    """Store what the metadata will name. All is decoded before anything is stored: a broken image leaves nothing."""
    outcome = media_types.extension(received.media_type)
    ready: list[tuple[str, Path, str]] = []
    original, clean, thumbnails = f"{base}/original.{outcome}", None, []
    if image is None or policy.keep_original:
        ready.append((original, received.path, received.media_type))
    if image is not None:
        clean = f"{base}/clean.{outcome}"
        file = received.path.with_name("clean")
        image.save_clean(file)
        ready.append((clean, file, received.media_type))
        for side in policy.thumbnails:
            ctx.check_cancelled()
            key, file = f"{base}/thumb-{side}.webp", received.path.with_name(f"thumb-{side}")
            small = image.save_thumbnail(file, side)
            thumbnails.append(Thumbnail(key=key, side=side, width=small.width, height=small.height))
            ready.append((key, file, "image/webp"))
    ctx.progress(2, 3, "made")
    for key, file, media_type in ready:
        with file.open("rb") as stream:
            storage.write(key, stream, media_type)
    return UploadProcessed(
        sha256=received.sha256,
        size=received.size,
        media_type=received.media_type,
        original=original if image is None or policy.keep_original else None,
        clean=clean,
        width=picture.width if picture else None,
        height=picture.height if picture else None,
        frames=picture.frames if picture else None,
        thumbnails=tuple(thumbnails),
        metadata=f"{base}/metadata.json",
    )
