"""Colours: every image becomes 8 bits a channel, in sRGB."""

from __future__ import annotations

import io

import blurhash
from PIL import Image, ImageCms

_SRGB = ImageCms.createProfile("sRGB")
_MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def to_srgb(image: Image.Image, profile: bytes | None, *, reuse: bool = False) -> Image.Image:
    """The image as L, RGB or RGBA in sRGB. Without a profile it is taken for sRGB, as browsers do.

    Arguments:
        profile: the ICC profile. One that is broken, or of another kind of colours than the image, is ignored.
        reuse: the image may be changed, which saves a copy.
    """
    image = _eight_bits(image)
    has_alpha = image.has_transparency_data
    if profile and (converted := _converted(image, profile, has_alpha, reuse)) is not None:
        return converted
    if has_alpha:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits or more, scaled to 8. Pillow's own conversion clips at 255, which makes it white."""
    if image.mode.startswith("I;16"):
        image = image.convert("I")
        low, high = 0.0, 65535.0
    elif image.mode in ("I", "F"):
        low, high = _range(image)
    else:
        return image
    scale = 255 / ((high - low) or 1)
    return image.point(lambda value: value * scale + (-low * scale)).convert("L")


def _range(image: Image.Image) -> tuple[float, float]:
    """The black and the white of integers of 32 bits, or of floating point: no format says them."""
    lowest, highest = (float(value) for value in image.getextrema())  # type: ignore[arg-type]
    for white in (1.0,) if image.mode == "F" else (65535.0,):
        if lowest >= 0 and highest <= white:
            return 0.0, white
    return lowest, highest


def _converted(image: Image.Image, profile: bytes, has_alpha: bool, reuse: bool) -> Image.Image | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODE_OF_SPACE.get(source.profile.xcolor_space.strip())
        if mode is None or (mode == "CMYK") != (image.mode == "CMYK"):
            return None
        grey = image.mode in ("1", "L", "LA")
        if mode == "L" and not grey:
            return None
        if (source.profile.profile_description or "").startswith("sRGB"):
            return None
        if image.mode == mode:
            colours = image
        else:
            colours = image.convert("RGBA").convert("RGB") if has_alpha and mode == "RGB" else image.convert(mode)
        to_rgb = ImageCms.buildTransform(
            source,
            _SRGB,
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "RGB" and (reuse or colours is not image):
            ImageCms.applyTransform(colours, to_rgb, True)
            result: Image.Image | None = colours
        else:
            result = ImageCms.applyTransform(colours, to_rgb)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if result is not None and has_alpha:
        result.putalpha(image.convert("RGBA").getchannel("A"))
    return result


def blurhash_of(image: Image.Image) -> str:
    """A blurhash of 4 × 3 components; transparency counts as white."""
    small = on_white(image.resize((32, 32), Image.Resampling.BOX))
    pixels = [[list(small.getpixel((x, y))) for x in range(32)] for y in range(32)]  # type: ignore[arg-type]
    return str(blurhash.encode(pixels, components_x=4, components_y=3))


def dominant_colour(image: Image.Image) -> str:
    """The most frequent of eight colours, as `#rrggbb`; transparency counts as white."""
    few = on_white(image.resize((64, 64), Image.Resampling.BOX)).quantize(8)
    counts = few.histogram()[:8]
    start = counts.index(max(counts)) * 3
    return "#{:02x}{:02x}{:02x}".format(*(few.getpalette() or [0] * 24)[start : start + 3])


def on_white(image: Image.Image) -> Image.Image:
    """The image as RGB, on a white ground."""
    if image.mode != "RGBA":
        return image if image.mode == "RGB" else image.convert("RGB")
    ground = Image.new("RGB", image.size, "white")
    ground.paste(image, mask=image.getchannel("A"))
    return ground
