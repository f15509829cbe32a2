"""Decoding images that strangers sent: clean copies and thumbnails, within a limit of pixels."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, ImageSequence

from penstock.workers.handlers.returns import Permanent

# What decodes each media type. Pillow must not choose by itself: it would hand bytes to any of forty decoders.
FORMATS = {
    "image/jpeg": ("JPEG", "MPO"),  # MPO: a camera's JPEG with more pictures behind the first
    "image/png": ("PNG",),
    "image/webp": ("WEBP",),
    "image/gif": ("GIF",),
}
_SAVE: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 92, "optimize": True},
    "PNG": {},  # its `optimize` takes up to nine times as long, for a seventh less
    "WEBP": {"quality": 90, "method": 2},
    "GIF": {},
}
# Pillow releases the interpreter's lock while it works, so threads use all cores. More at a time would be no faster,
# and each large image takes hundreds of megabytes.
_decoding = threading.BoundedSemaphore(os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Picture:
    """An image's size in pixels, upright, and its number of frames."""

    width: int
    height: int
    frames: int


class UploadedImage:
    """A file on disk known to begin as one of FORMATS. Every method raises Permanent where the rest is broken."""

    def __init__(self, path: Path, media_type: str, max_pixels: int) -> None:
        self._path, self._formats, self._max_pixels = path, FORMATS[media_type], max_pixels

    def measure(self) -> Picture:
        """Read the size without decoding the pixels, and hold it against the limit."""
        with self._open() as image:
            width, height = image.size
            frames = self._frames(image)
            if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # orientations that lie on their side
                width, height = height, width
        return Picture(width, height, frames)

    def save_clean(self, target: Path) -> None:
        """A copy in the same format: upright, all frames, colour profile kept, every other metadata left out."""
        with self._open() as image:
            kind = self._formats[0]
            moves = kind != "JPEG" and self._frames(image) > 1
            options: dict[str, Any] = {**_SAVE[kind], "format": kind}
            if profile := image.info.get("icc_profile"):
                options["icc_profile"] = profile
            if moves:
                # Frames are saved as they are; turning each by hand would lose their timing. The formats that move
                # hardly ever carry an orientation.
                options |= {"save_all": True, "exif": b"", "xmp": b"", "duration": _durations(image)}
                if "loop" in image.info:
                    options["loop"] = image.info["loop"]
                if kind == "GIF":
                    options["comment"] = b""
                image.save(target, **options)
            else:
                _bare(ImageOps.exif_transpose(image)).save(target, **options)

    def save_thumbnail(self, target: Path, side: int) -> Picture:
        """The first frame as WebP, no side longer than `side`, never enlarged."""
        with self._open() as image:
            if self._formats[0] == "JPEG":
                image.draft("RGB", (side * 2, side * 2))  # decode at a fraction of the size where JPEG allows it
            upright = ImageOps.exif_transpose(image)
            has_alpha = upright.has_transparency_data
            small = upright.convert("RGBA" if has_alpha else "RGB")
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            _bare(small).save(target, "WEBP", quality=82, method=4)
            return Picture(small.width, small.height, 1)

    @contextmanager
    def _open(self) -> Iterator[Image.Image]:
        try:
            with _decoding, Image.open(self._path, formats=self._formats) as image:
                if image.width * image.height > self._max_pixels:
                    raise Permanent(self._too_large(f"{image.width} × {image.height} pixels"))
                yield image
        except (Permanent, MemoryError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise Permanent(self._too_large(str(error))) from error
        except OSError as error:
            if error.errno is not None:  # the disk's, not the decoder's
                raise
            raise Permanent(f"not a readable image: {error}") from error
        except Exception as error:  # decoders raise SyntaxError, struct.error and more on broken input
            raise Permanent(f"not a readable image: {type(error).__name__}: {error}") from error

    def _frames(self, image: Image.Image) -> int:
        """Count frames by stepping through them, and stop at the limit: a header's count may be a lie."""
        if self._formats[0] == "JPEG" or not getattr(image, "is_animated", False):
            return 1
        pixels, count = image.width * image.height, 1
        try:
            while True:
                image.seek(count)
                count += 1
                # A frame of few pixels costs too: it counts as 4096.
                if count * max(pixels, 4096) > self._max_pixels:
                    raise Permanent(self._too_large(f"{image.width} × {image.height} pixels in {count} frames or more"))
        except EOFError:
            image.seek(0)
            return count

    def _too_large(self, size: str) -> str:
        return f"image too large: max_pixels is {self._max_pixels}, found {size}"


def _durations(image: Image.Image) -> list[int]:
    """Durations of the frames, in milliseconds. Afterwards the image is at its first frame again."""
    durations = []
    for frame in ImageSequence.Iterator(image):
        frame.load()  # WebP knows it only then
        durations.append(int(frame.info.get("duration", 0)))
    image.seek(0)
    return durations


def _bare(image: Image.Image) -> Image.Image:
    """The pixels (and palette) alone: savers copy what they find in `info`."""
    image.load()
    transparency = image.info.get("transparency")
    image.info = {} if transparency is None else {"transparency": transparency}
    return image
