"""`[uploads]`."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from penstock.config.sections.builtin.section import MEGABYTE, Section
from penstock.config.sections.tenants import TENANT, check_folder


class UploadsSettings(Section):
    """`[uploads]`: the policy every upload is checked against, and what is made of images."""

    max_bytes: int = Field(default=100 * MEGABYTE, ge=1)
    media_types: tuple[str, ...] = (
        "image/jpeg",
        "image/png",
        "image/webp",
        "image/gif",
        "application/pdf",
        "text/plain",
    )
    """Accepted media types, detected from the content. `image/*` is every image; `text/plain` includes `text/csv`."""
    max_pixels: int = Field(default=40_000_000, ge=1, le=89_478_485)
    """Width × height × frames of an image. One being worked on takes up to 12 bytes for each (WebP: 24); a worker
    process works on as many at a time as there are cores. The bound is Pillow's own limit."""
    thumbnails: tuple[int, ...] = (256, 1024)
    """The longest sides, in pixels. An image is never enlarged."""
    keep_original: bool = True
    """Keep images as they came, with their metadata (which may hold where they were taken), next to the clean copy."""
    prefix: str = "uploads"
    """Folder of the results in the storage; for a job with a tenant, below the tenant's folder."""

    @field_validator("prefix")
    @classmethod
    def _folder(cls, value: str) -> str:
        if TENANT in value:
            raise ValueError(f"leave {TENANT} out: results of tenants are below tenant_storage_prefix by themselves")
        return check_folder(value)

    @field_validator("media_types")
    @classmethod
    def _types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.fullmatch(r"[a-z]+/([a-z0-9.+-]+|\*)", name):
                raise ValueError(f"{name!r} is not a media type; write it as image/png or image/*")
        return value

    @field_validator("thumbnails")
    @classmethod
    def _sizes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if bad := [size for size in value if not 1 <= size <= 8192]:
            raise ValueError(f"a thumbnail's side must lie between 1 and 8192 pixels, not {bad[0]}")
        return tuple(sorted(set(value)))
