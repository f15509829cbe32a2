"""`[uploads]`, and `[uploads.NAME]` for what differs in a policy with a name."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from penstock.config.sections.builtin.section import MEGABYTE, Section
from penstock.config.sections.tenants import TENANT, check_folder
from penstock.config.sections.values import Size


class VariantSettings(Section):
    """An entry of `variants`: a picture made of each image, in sRGB and without metadata."""

    width: int | None = Field(default=None, ge=1, le=8192)
    """Of the box, in pixels. None, where `mode` is `fit`: no bound."""
    height: int | None = Field(default=None, ge=1, le=8192)
    mode: Literal["fit", "fill", "crop"] = "fit"
    """`fit` scales down until the box holds the image, and never enlarges. `fill` scales so that it covers the box, and
    cuts off the rest. `crop` cuts the box out of its middle, unscaled."""
    format: Literal["jpeg", "png", "webp", "avif", "gif"] = "webp"
    quality: int = Field(default=82, ge=1, le=100)
    """Of JPEG, WebP and AVIF."""
    animated: bool = False
    """Keep all frames, where the upload moves and the format can."""

    @model_validator(mode="after")
    def _box(self) -> VariantSettings:
        if self.width is None and self.height is None:
            raise ValueError("a variant needs width, height, or both")
        if self.mode != "fit" and (self.width is None or self.height is None):
            raise ValueError(f"mode {self.mode!r} needs both width and height")
        if self.animated and self.format == "jpeg":
            raise ValueError("a JPEG cannot be animated; use webp, avif, png or gif")
        return self


class UploadPolicy(Section):
    """Limits of an upload, and what is made of images."""

    max_bytes: int = Field(default=100 * MEGABYTE, ge=1)
    media_types: tuple[str, ...] = (
        "image/jpeg",
        "image/png",
        "image/webp",
        "image/gif",
        "image/avif",
        "image/heic",
        "application/pdf",
        "text/plain",
    )
    """Accepted media types, detected from the content. `image/*` is every image; `text/plain` includes `text/csv`."""
    max_pixels: int = Field(default=120_000_000, ge=1, le=1_000_000_000)
    """Width × height × frames of an image. The default takes photos of 108 megapixels."""
    thumbnails: tuple[int, ...] = (256, 1024)
    """The longest sides, in pixels, of thumbnails as WebP. An image is never enlarged."""
    variants: dict[str, VariantSettings] = Field(default_factory=dict)
    """Further pictures, by name."""
    keep_original: bool = True
    """Keep images as they came, with their metadata (which may hold where they were taken), next to the clean copy."""
    encrypted_pdfs: bool = False
    """Accept PDFs that cannot be read without a password."""

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

    @field_validator("variants")
    @classmethod
    def _names(cls, value: dict[str, VariantSettings]) -> dict[str, VariantSettings]:
        for name in value:
            _check_name("variant", name)
        return value


class UploadsSettings(UploadPolicy):
    """`[uploads]`: the policy that holds for every upload, and where results go.

    A table `[uploads.NAME]` is a policy of its own, for jobs with `policy: "NAME"`; what it leaves out is as here.
    """

    policies: dict[str, UploadPolicy] = Field(default_factory=dict)
    """The tables `[uploads.NAME]`, by name."""
    prefix: str = "uploads"
    """Folder of the results in the storage; for a job with a tenant, below the tenant's folder."""
    decoder_memory: Size = Field(default=2 * 1024 * MEGABYTE, ge=64 * MEGABYTE)
    """Bytes that a decoder, a process for each upload, may take. A worker runs as many at a time as it has cores."""
    decoder_seconds: int = Field(default=300, ge=1)
    """Seconds of processor time that a decoder may take."""
    clamd: str | None = None
    """ClamAV's daemon, which every upload is sent to: `tcp://host:3310` or `unix:/run/clamav/clamd.ctl`."""
    quarantine: str = "quarantine"
    """Folder of uploads with a virus, as `prefix`."""

    @model_validator(mode="before")
    @classmethod
    def _tables(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        tables = {name: value for name, value in values.items() if isinstance(value, dict | UploadPolicy)}
        named = {name: tables[name] for name in tables if name not in cls.model_fields}
        if not named:
            return values
        rest = {name: value for name, value in values.items() if name not in named}
        return {**rest, "policies": {**rest.get("policies", {}), **named}}

    @field_validator("policies")
    @classmethod
    def _policy_names(cls, value: dict[str, UploadPolicy]) -> dict[str, UploadPolicy]:
        for name in value:
            _check_name("policy", name)
            if name == "sha256":
                raise ValueError("a policy cannot have the name sha256, which is a folder of the results")
        return value

    def policy(self, name: str | None) -> UploadPolicy:
        """The policy of this name, completed by `[uploads]`; None: `[uploads]` itself.

        Raises:
            LookupError: no table has this name; lists those there are.
        """
        if name is None:
            return self
        if name not in self.policies:
            names = ", ".join(sorted(self.policies)) or "none"
            raise LookupError(f"no policy {name!r}: penstock.toml has no [uploads.{name}]; there is: {names}")
        special = self.policies[name]
        own = {field: getattr(special, field) for field in special.model_fields_set}
        return UploadPolicy.model_validate({field: getattr(self, field) for field in UploadPolicy.model_fields} | own)

    @field_validator("clamd")
    @classmethod
    def _clamd(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(
            r"tcp://(\[[0-9a-fA-F:]+\]|[^/:\[\]]+)(:\d{1,5})?|unix:(//)?/.+", value
        ):
            raise ValueError(f"{value!r} names no clamd; write tcp://host:3310 or unix:/run/clamav/clamd.ctl")
        return value

    @field_validator("prefix", "quarantine")
    @classmethod
    def _folder(cls, value: str) -> str:
        if TENANT in value:
            raise ValueError(f"leave {TENANT} out: results of tenants are below tenant_storage_prefix by themselves")
        return check_folder(value)


def _check_name(thing: str, name: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        raise ValueError(f"{thing} {name!r}: a name has lower-case letters, digits, - and _, and at most 64 of them")
