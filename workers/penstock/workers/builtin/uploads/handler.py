"""`upload.process`: the checks, the pictures and the metadata of an upload."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

from pydantic import ValidationError

from penstock.config.errors import InvalidKey, ObjectNotFound
from penstock.config.sections.builtin.uploads import UploadPolicy
from penstock.config.settings import Settings
from penstock.schemas.builtin.uploads import ProcessUpload, Thumbnail, UploadProcessed, Variant
from penstock.workers.builtin.scratch import scratch_folder
from penstock.workers.builtin.uploads import media_types
from penstock.workers.builtin.uploads.decoder.messages import IMAGES, ImageAnswer, Made, Recipe
from penstock.workers.builtin.uploads.decoding import decode_image, read_pdf
from penstock.workers.builtin.uploads.receiving import Received, receive
from penstock.workers.builtin.uploads.scanning import quarantine, scan
from penstock.workers.handlers.context import Context
from penstock.workers.handlers.registry import handles
from penstock.workers.handlers.returns import Permanent
from penstock.workers.handlers.storage import Storage, storage_of

_VERSION = 2
"""Raised with a change of the code after which the same settings have other results."""
_CLEAN_QUALITY, _THUMBNAIL_QUALITY = 90, 82


def missing_policy(job: ProcessUpload, settings: Settings, tenant: str | None = None) -> str | None:
    """The lack of a worker whose settings do not have the job's policy; None if they have."""
    try:
        settings.uploads.policy(job.policy)
    except LookupError as error:
        return str(error)
    return None


@handles(ProcessUpload, missing=missing_policy)
def process_upload(job: ProcessUpload, ctx: Context, storage: Storage, settings: Settings) -> UploadProcessed:
    """Check an upload and write its results under `uploads/sha256/ab/cd/<hash>/`, for a tenant below its folder.

    Results are named by the content's hash and `metadata.json` comes last, so a second run finds them and writes
    nothing; after a crash in between it writes the same again.

    Raises:
        Permanent: the object is missing or not its tenant's, or it breaks the policy; says which limit and what was
            found.
        StorageError, OSError, DecoderFailed: worth another try.
    """
    storage = storage_of(ctx.tenant, storage, settings)
    try:
        policy = settings.uploads.policy(job.policy)
    except LookupError as error:
        raise Permanent(str(error)) from error
    with scratch_folder("penstock-upload") as folder:
        received = receive(job, ctx, storage, policy, folder)
        ctx.progress(1, 3, "received")
        parts = [settings.uploads.prefix, *([job.policy] if job.policy else []), "sha256"]
        base = "/".join([f"{storage.root}{parts[0]}", *parts[1:], received.sha256[:2], received.sha256[2:4]])
        base = f"{base}/{received.sha256}"
        if (url := settings.uploads.clamd) and (virus := scan(received.path, url, ctx)) is not None:
            raise quarantine(job, ctx, storage, received, virus, settings.uploads.quarantine)
        made_with = _fingerprint(policy, received.media_type)
        if earlier := _earlier_result(storage, base, made_with, policy):
            return earlier
        image = pdf = None
        if received.media_type == "application/pdf":
            pdf = read_pdf(received.path, settings.uploads, ctx)
            if pdf.needs_password and not policy.encrypted_pdfs:
                raise Permanent(f"{job.key}: the PDF needs a password; encrypted_pdfs of [uploads] is false")
        if received.media_type in IMAGES:
            recipes = _recipes(policy, folder)
            image = decode_image(received.path, received.media_type, policy.max_pixels, recipes, settings.uploads, ctx)
        result = _write(storage, base, received, image, policy, made_with, ctx)
        if pdf is not None:
            result.pages, result.encrypted = pdf.pages, pdf.needs_password
        storage.write(result.metadata, io.BytesIO(result.model_dump_json().encode()), "application/json")
        ctx.progress(3, 3, "stored")
        return result


def _fingerprint(policy: UploadPolicy, media_type: str) -> str:
    """Hash of the settings that decide about the results of an upload of this type."""
    fields = ("thumbnails", "variants", "keep_original") if media_type in IMAGES else ()
    text = json.dumps([_VERSION, policy.model_dump(mode="json", include=set(fields))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _earlier_result(storage: Storage, base: str, made_with: str, policy: UploadPolicy) -> UploadProcessed | None:
    """The result of an earlier run, if it is complete and was made under the same settings."""
    key = f"{base}/metadata.json"
    try:
        with storage.read(key) as stream:
            result = UploadProcessed.model_validate_json(stream.read())
    except (ObjectNotFound, ValidationError):
        return None
    pixels = (result.width or 0) * (result.height or 0) * (result.frames or 0)
    if result.made_with != made_with or pixels > policy.max_pixels or (result.encrypted and not policy.encrypted_pdfs):
        return None
    keys = [result.original, result.clean, *(thumbnail.key for thumbnail in result.thumbnails)]
    keys += [variant.key for variant in result.variants.values()]
    try:
        return result if all(storage.find(key) for key in keys if key) else None
    except InvalidKey:  # someone else wrote it: it names objects of another tenant
        return None


def _recipes(policy: UploadPolicy, folder: Path) -> list[Recipe]:
    """The pictures that a policy asks for: the clean copy, the thumbnails, the variants."""
    clean = Recipe(str(folder / "clean"), None, None, None, "fit", _CLEAN_QUALITY, True)
    thumbnails = [
        Recipe(str(folder / f"thumb-{side}"), "webp", side, side, "fit", _THUMBNAIL_QUALITY, False)
        for side in policy.thumbnails
    ]
    variants = [
        Recipe(
            str(folder / f"variant-{name}"),
            variant.format,
            variant.width,
            variant.height,
            variant.mode,
            variant.quality,
            variant.animated,
        )
        for name, variant in policy.variants.items()
    ]
    return [clean, *thumbnails, *variants]


def _write(
    storage: Storage,
    base: str,
    received: Received,
    image: ImageAnswer | None,
    policy: UploadPolicy,
    made_with: str,
    ctx: Context,
) -> UploadProcessed:
    """Store what the metadata will name. All is decoded before anything is stored: a broken image leaves nothing."""
    folder = received.path.parent
    result = UploadProcessed(
        sha256=received.sha256,
        size=received.size,
        media_type=received.media_type,
        original=None,
        made_with=made_with,
        metadata=f"{base}/metadata.json",
    )
    ready: list[tuple[str, Path, str]] = []
    if image is None or policy.keep_original:
        result.original = f"{base}/original.{media_types.extension(received.media_type)}"
        ready.append((result.original, received.path, received.media_type))
    if image is not None:
        result.width, result.height, result.frames = image.width, image.height, image.frames
        result.blurhash, result.colour = image.blurhash, image.colour
        pictures = iter(image.pictures)
        clean = next(pictures)
        result.clean = f"{base}/clean.{_extension(clean)}"
        ready.append((result.clean, folder / "clean", _media_type(clean)))
        for side in policy.thumbnails:
            small = next(pictures)
            key = f"{base}/thumb-{side}.webp"
            ready.append((key, folder / f"thumb-{side}", "image/webp"))
            thumbnail = Thumbnail(key=key, side=side, width=small.width, height=small.height)
            result.thumbnails = (*result.thumbnails, thumbnail)
        for name in policy.variants:
            picture = next(pictures)
            key = f"{base}/variant-{name}.{_extension(picture)}"
            ready.append((key, folder / f"variant-{name}", _media_type(picture)))
            result.variants[name] = Variant(
                key=key,
                media_type=_media_type(picture),
                width=picture.width,
                height=picture.height,
                frames=picture.frames,
            )
    ctx.progress(2, 3, "made")
    for key, file, media_type in ready:
        ctx.check_cancelled()
        with file.open("rb") as stream:
            storage.write(key, stream, media_type)
    return result


def _media_type(picture: Made) -> str:
    return f"image/{picture.format}"


def _extension(picture: Made) -> str:
    return media_types.extension(_media_type(picture))
