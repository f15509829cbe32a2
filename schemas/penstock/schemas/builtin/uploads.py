"""`upload.process`: check an uploaded object, and make thumbnails and metadata of it."""

from __future__ import annotations

from pydantic import BaseModel, Field

from penstock.config.errors import StorageError
from penstock.schemas.builtin.outages import OUTAGE
from penstock.schemas.jobs.job import Job
from penstock.schemas.jobs.retry_policy import RetryPolicy

_RETRY = RetryPolicy(max_attempts=8, by_error={StorageError: OUTAGE, OSError: OUTAGE})


class ProcessUpload(Job, kind="upload.process", queue="uploads", timeout=600, retry=_RETRY):
    """Check one object of the storage against `[uploads]`, and write what is made of it back."""

    key: str = Field(min_length=1, max_length=1024)
    """Key of the object in the storage."""
    max_bytes: int | None = Field(default=None, ge=1)
    """A limit below the setting of that name, for this upload."""
    media_types: tuple[str, ...] | None = None
    """Media types accepted for this upload, among those of the settings, such as `("image/*",)` for a portrait."""
    policy: str | None = Field(default=None, max_length=64)
    """Name of the policy, a table `[uploads.NAME]`; None: `[uploads]`."""


class Thumbnail(BaseModel):
    key: str
    side: int
    """The size asked for: its longest side at most, in pixels."""
    width: int
    height: int


class Variant(BaseModel):
    """A picture of `variants`, with its size in pixels."""

    key: str
    media_type: str
    width: int
    height: int
    frames: int


class UploadProcessed(BaseModel):
    """The results of an upload. Also the content of the `metadata.json` next to them.

    It depends on the bytes and the settings alone, so that the same upload under two names has the same results.
    """

    sha256: str
    size: int
    """In bytes, as uploaded."""
    media_type: str
    """As detected from the content, whatever the name."""
    original: str | None
    """Key of the bytes as they came; None for an image where `keep_original` is off."""
    clean: str | None = None
    """Key of an image's copy: turned upright, in sRGB, without EXIF, GPS, XMP or comments."""
    width: int | None = None
    """In pixels, upright; None if the upload is not an image."""
    height: int | None = None
    frames: int | None = None
    thumbnails: tuple[Thumbnail, ...] = ()
    variants: dict[str, Variant] = Field(default_factory=dict)
    """By the names of the settings."""
    blurhash: str | None = None
    """Of an image: a preview of some 30 characters, to show while it loads (blurha.sh)."""
    colour: str | None = None
    """Of an image: its most frequent colour, as `#rrggbb`."""
    pages: int | None = None
    """Of a PDF that can be read."""
    encrypted: bool | None = None
    """Of a PDF: whether reading it needs a password."""
    made_with: str = ""
    """Hash of the settings that decide about the results: under other ones they are made again."""
    metadata: str
    """Key of the JSON with these fields. It is written last: if it exists, the rest does too."""
