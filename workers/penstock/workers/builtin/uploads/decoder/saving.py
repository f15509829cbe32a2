"""Writing pictures: only pixels, no metadata and no profile, as all are sRGB."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from penstock.workers.builtin.uploads.decoder.colours import on_white
from penstock.workers.builtin.uploads.decoder.messages import Format

ANIMATED: tuple[Format, ...] = ("webp", "avif", "gif", "png")
"""Formats that can move."""
_TRANSPARENT = 255
"""Entry of a GIF's palette."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture, and how long it is seen, in milliseconds."""

    picture: Image.Image
    duration: int


def save(frames: Iterator[Frame], plays: int, target: Path, format: Format, quality: int) -> None:
    """Write a picture, or several as an animation.

    Arguments:
        frames: in sRGB, whole: none needs the one before it.
        plays: how often an animation is seen; 0: for ever.
        quality: from 1 to 100; GIF and PNG have none.
    """
    options: dict[str, Any] = {
        "jpeg": {"quality": quality, "optimize": True},
        "png": {},  # its `optimize` takes up to nine times as long, for a seventh less
        "webp": {"quality": quality, "method": 2},
        "avif": {"quality": quality, "speed": 8},
        "gif": {},
    }[format]
    first = next(frames)
    durations = [first.duration]
    following: list[Image.Image] = []
    for frame in frames:
        durations.append(frame.duration)
        following.append(_ready(frame.picture, format))
    picture = _ready(first.picture, format)
    if following:
        options |= {"save_all": True, "append_images": following, "duration": durations}
        if format == "gif":
            options |= {"disposal": 2}  # each frame on an empty ground, else those with holes would smear
            if plays != 1:
                options["loop"] = max(plays - 1, 0)
        elif format == "png":
            options |= {"loop": plays, "disposal": 0, "blend": 0}
        elif format == "webp":
            options |= {"loop": plays}
            if any(
                picture.mode == "RGBA" and picture.getchannel("A").getextrema() != (255, 255) for picture in following
            ):
                options["kmax"] = 1  # whole frames: the encoder's differences between frames lose holes
    picture.save(target, format.upper(), **options)


def _ready(image: Image.Image, format: Format) -> Image.Image:
    if format == "jpeg":
        image = image if image.mode == "L" else on_white(image)
    elif format == "gif":
        image = _with_palette(image)
    elif format in ("webp", "avif") and image.mode == "L":
        image = image.convert("RGB")
    if image.info:
        image = image.copy() if image.readonly else image
        image.info = {"transparency": _TRANSPARENT} if "transparency" in image.info and format == "gif" else {}
    return image


def _with_palette(image: Image.Image) -> Image.Image:
    """The picture in at most 255 colours, and the last entry for what is more than half transparent.

    Pillow's own way for RGBA is an octree, which changes colours even where they are few.
    """
    few = on_white(image).quantize(_TRANSPARENT, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    if image.mode == "RGBA":
        hidden = image.getchannel("A").point(lambda alpha: 255 if alpha < 128 else 0)
        if hidden.getbbox():
            opaque = image.convert("RGB")  # on white, half transparent pixels would shine
            few = opaque.quantize(_TRANSPARENT, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            few.paste(_TRANSPARENT, mask=hidden)
            few.info["transparency"] = _TRANSPARENT
    return few
