"""The request to a decoder, and its answer. Both are JSON, of plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["fit", "fill", "crop"]
Format = Literal["jpeg", "png", "webp", "avif", "gif"]

IMAGES = (
    "image/jpeg",
    "image/png",
    "image/webp",
    "image/gif",
    "image/avif",
    "image/heic",
    "image/tiff",
    "image/bmp",
)
"""Media types that are decoded."""


class Refused(Exception):
    """The content cannot be used, however often it is tried."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a picture is made of an image.

    Attributes:
        target: path of the file to write.
        format: None: as the source, where that is a format for the web; else JPEG, or PNG for what has transparency
            or came without loss.
        width, height: the box in pixels; None: no bound.
        mode: `fit` scales down until the box holds it, `fill` scales so that it covers the box and cuts the rest off,
            `crop` cuts the box out of its middle, unscaled.
        quality: from 1 to 100, of formats with loss.
        animated: keep all frames, where source and format have them.
    """

    target: str
    format: Format | None
    width: int | None
    height: int | None
    mode: Mode
    quality: int
    animated: bool


@dataclass(frozen=True, slots=True)
class Request:
    """The file to read, and its limits.

    Attributes:
        max_pixels: width × height × frames.
        memory: bytes that the process may have beyond what it starts with.
        cpu_seconds: of all its threads.
    """

    source: str
    media_type: str
    max_pixels: int
    memory: int
    cpu_seconds: int
    recipes: list[Recipe]


@dataclass(frozen=True, slots=True)
class Made:
    """A picture that was written: its size in pixels, and its format."""

    width: int
    height: int
    frames: int
    format: Format


@dataclass(frozen=True, slots=True)
class ImageAnswer:
    """An image's size in pixels, upright, and the pictures in the order of the recipes.

    `colour` is the most frequent one as `#rrggbb`; `blurhash` is a preview of some 30 characters (blurha.sh).
    """

    width: int
    height: int
    frames: int
    pictures: list[Made]
    blurhash: str
    colour: str


@dataclass(frozen=True, slots=True)
class PdfAnswer:
    """The number of a PDF's pages, which only its password shows where it needs one to be read."""

    pages: int | None
    needs_password: bool
