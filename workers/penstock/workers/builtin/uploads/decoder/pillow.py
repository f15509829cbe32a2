"""Images by Pillow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import GifImagePlugin, Image, ImageFile, ImageOps

from penstock.workers.builtin.uploads.decoder.colours import blurhash_of, dominant_colour, to_srgb
from penstock.workers.builtin.uploads.decoder.messages import Format, ImageAnswer, Made, Recipe, Refused, Request
from penstock.workers.builtin.uploads.decoder.saving import ANIMATED, Frame, save

# What decodes each media type. Pillow must not choose by itself: it would hand bytes to any of forty decoders.
_DECODERS = {
    "image/jpeg": ("JPEG", "MPO"),  # MPO: a camera's JPEG with more pictures behind the first
    "image/png": ("PNG",),
    "image/webp": ("WEBP",),
    "image/gif": ("GIF",),
    "image/avif": ("AVIF",),
    "image/heic": ("HEIF",),
    "image/tiff": ("TIFF",),
    "image/bmp": ("BMP",),
}
_CLEAN: dict[str, Format] = {"image/jpeg": "jpeg", "image/heic": "jpeg", "image/webp": "webp", "image/avif": "avif"}
_CLEAN |= {"image/gif": "gif"}
_MOVING = ("image/gif", "image/webp", "image/png", "image/avif")
_ITSELF: dict[str, Any] = {"in_place": True}
# A frame of few pixels costs time and memory, too.
_LEAST_FRAME = 4096

Image.MAX_IMAGE_PIXELS = None  # the limit is max_pixels
GifImagePlugin.LOADING_STRATEGY = GifImagePlugin.LoadingStrategy.RGB_ALWAYS  # frames as they are seen
with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)


@dataclass(frozen=True, slots=True)
class _Motion:
    """The frames of an image: where they begin, how long each is seen (ms), and how often all are (0: for ever)."""

    first: int
    durations: list[int]
    plays: int


def process(request: Request) -> ImageAnswer:
    """Decode an image, and write what the recipes ask for. Raises Refused, MemoryError."""
    with _opened(request) as image:
        motion = _measure(image, request)
        base = _upright(image, reuse=len(motion.durations) == 1)
        pictures = [_make(recipe, request, image, base, motion) for recipe in request.recipes]
        small = _fitted(base, Recipe("", None, 256, 256, "fit", 0, False))
        return ImageAnswer(
            width=base.width,
            height=base.height,
            frames=len(motion.durations),
            pictures=pictures,
            blurhash=blurhash_of(small),
            colour=dominant_colour(small),
        )


@contextmanager
def _opened(request: Request) -> Iterator[Image.Image]:
    """The image, with its first frame decoded."""
    formats = _DECODERS[request.media_type]
    if not _can_read(formats[0]):
        raise Refused(f"this worker cannot read {request.media_type}: its Pillow has no {formats[0]}")
    try:
        with Image.open(request.source, formats=formats) as image:
            _check_size(image, 1, request)
            try:
                image.load()
                yield image
                return
            except OSError as error:
                if request.media_type != "image/jpeg" or "truncated" not in str(error):
                    raise
        with Image.open(_with_end(request, formats), formats=formats) as image:
            image.load()
            yield image
    except (Refused, MemoryError):
        raise
    except Exception as error:  # decoders raise SyntaxError, struct.error and more on broken input
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the decoder's
            raise
        raise Refused(f"not a readable image: {type(error).__name__}: {error}") from error


def _can_read(format: str) -> bool:
    Image.preinit()
    if format not in Image.OPEN:
        Image.init()
    return format in Image.OPEN


def _check_size(image: Image.Image, frames: int, request: Request) -> None:
    if frames * max(image.width * image.height, _LEAST_FRAME if frames > 1 else 0) > request.max_pixels:
        pixels = f"{image.width} × {image.height} pixels"
        several = f" in {frames} frames or more" if frames > 1 else ""
        raise Refused(f"image too large: max_pixels is {request.max_pixels}, found {pixels}{several}")


def _with_end(request: Request, formats: tuple[str, ...]) -> Path:
    """A copy of a JPEG that lacks its end marker, with one.

    What else may lack, is decoded as grey. So the image is decoded twice, with different bytes between its own and the
    marker: if all its pixels are there, the bytes are skipped; if not, they are taken for pixels, and differ.

    Raises:
        Refused: pixels are missing.
    """
    content = Path(request.source).read_bytes().removesuffix(b"\xff")
    digests = set()
    for number, filler in enumerate((b"", b"\x55\x2a" * 2048, b"\xc3\x99" * 2048)):
        path = Path(request.source).with_name(f"ended-{number}")
        path.write_bytes(content + filler + b"\xff\xd9")
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            with Image.open(path, formats=formats) as image:
                image.load()
                digests.add(hashlib.sha256(image.tobytes()).digest())
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        if len(digests) > 1:
            raise Refused("not a readable image: it is cut short, and a part of its pixels is missing")
    return Path(request.source).with_name("ended-0")


def _measure(image: Image.Image, request: Request) -> _Motion:
    """Count frames by stepping through them, and stop at the limit: a header's count may be a lie."""
    if request.media_type not in _MOVING or not getattr(image, "is_animated", False):
        return _Motion(0, [0], 1)
    first = 1 if image.info.get("default_image") else 0  # a PNG's picture for programs that show no frames
    durations: list[int] = []
    with suppress(EOFError):
        while True:
            _check_size(image, first + len(durations) + 1, request)
            image.seek(first + len(durations))
            if request.media_type in ("image/webp", "image/avif"):
                image.load()  # the duration is there only then
            durations.append(int(image.info.get("duration", 0)))
    loop = image.info.get("loop")
    if request.media_type == "image/gif":  # counts how often it is shown again
        plays = 1 if loop is None else 0 if loop == 0 else int(loop) + 1
    else:
        plays = int(loop or 0)
    image.seek(0)
    image.load()
    return _Motion(first, durations, plays)


def _make(recipe: Recipe, request: Request, image: Image.Image, base: Image.Image, motion: _Motion) -> Made:
    format = recipe.format or _CLEAN.get(request.media_type, "png")
    if format == "jpeg" and recipe.format is None and base.mode == "RGBA":
        format = "png"
    moves = recipe.animated and len(motion.durations) > 1 and format in ANIMATED
    first = _fitted(base, recipe)
    pictures = _frames(image, recipe, motion) if moves else iter([Frame(first, 0)])
    save(pictures, motion.plays, Path(recipe.target), format, recipe.quality)
    count = len(motion.durations) if moves else 1
    return Made(width=first.width, height=first.height, frames=count, format=format)


def _frames(image: Image.Image, recipe: Recipe, motion: _Motion) -> Iterator[Frame]:
    for number, duration in enumerate(motion.durations):
        image.seek(motion.first + number)
        image.load()
        yield Frame(_fitted(_upright(image, reuse=False).convert("RGBA"), recipe), duration)


def _upright(image: Image.Image, *, reuse: bool) -> Image.Image:
    """The image turned upright, in sRGB. With `reuse` itself is changed, to save a copy; no frame may follow."""
    profile = image.info.get("icc_profile")
    if reuse:
        ImageOps.exif_transpose(image, **_ITSELF)
        return to_srgb(image, profile, reuse=True)
    return to_srgb(ImageOps.exif_transpose(image), profile)


def _fitted(image: Image.Image, recipe: Recipe) -> Image.Image:
    """The image in the recipe's box."""
    width, height = recipe.width or image.width, recipe.height or image.height
    if recipe.mode == "crop":
        width, height = min(width, image.width), min(height, image.height)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))
    if recipe.mode == "fill":
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    scale = min((recipe.width or image.width) / image.width, (recipe.height or image.height) / image.height, 1.0)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
