"""Images of all formats, as cameras and programs write them."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image, ImageCms
from support.builtin.tools import get, put, settings

from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.uploads import ProcessUpload, UploadProcessed
from penstock.workers import Context, Permanent
from penstock.workers.builtin.uploads import media_types
from penstock.workers.builtin.uploads.handler import process_upload

ALL = ("image/*",)


def process(storage: FileStorage, ctx: Context, content: bytes, **uploads: object) -> UploadProcessed:
    put(storage, "in/file", content)
    return process_upload(ProcessUpload(key="in/file"), ctx, storage, settings(uploads={"media_types": ALL, **uploads}))


def stored(storage: FileStorage, key: str | None) -> Image.Image:
    assert key is not None
    image = Image.open(io.BytesIO(get(storage, key)))
    image.load()
    return image


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def gradient(size: tuple[int, int] = (320, 200)) -> Image.Image:
    """Red grows to the right, green downwards, with a fine pattern in blue."""
    image = Image.new("RGB", size)
    image.putdata(
        [(x * 255 // size[0], y * 255 // size[1], x * y % 256) for y in range(size[1]) for x in range(size[0])]
    )
    return image


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_grey_of_16_bits_keeps_its_shades(storage: FileStorage, ctx: Context, format: str):
    values = [x * 65535 // 255 for x in range(256)] * 20
    image = Image.new("I;16", (256, 20))
    image.putdata(values)
    result = process(storage, ctx, encoded(image, format))
    for key in (result.clean, result.thumbnails[0].key):
        shades = [stored(storage, key).convert("L").getpixel((x, 10)) for x in range(0, 256, 15)]
        assert all(abs(shade - x) <= 3 for shade, x in zip(shades, range(0, 256, 15), strict=True)), shades


def with_swapped_channels(profile: bytes) -> bytes:
    """A profile whose red is sRGB's green and the reverse: the two tags change places."""
    swap = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}
    count = struct.unpack(">I", profile[128:132])[0]
    changed = bytearray(profile.replace(b"s\0R\0G\0B", b"x\0R\0G\0B").replace(b"sRGB built-in", b"xRGB built-in"))
    for start in range(132, 132 + 12 * count, 12):
        changed[start : start + 4] = swap.get(profile[start : start + 4], profile[start : start + 4])
    return bytes(changed)


@pytest.mark.parametrize(("format", "mode"), [("JPEG", "RGB"), ("PNG", "RGBA"), ("WEBP", "RGB"), ("TIFF", "RGB")])
def test_colours_of_a_profile_become_srgb(storage: FileStorage, ctx: Context, format: str, mode: str):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = with_swapped_channels(srgb)
    content = encoded(Image.new(mode, (64, 64), "red"), format, icc_profile=profile)
    result = process(storage, ctx, content)
    for key in (result.clean, result.thumbnails[0].key):
        image = stored(storage, key)
        red, green, blue = image.convert("RGB").getpixel((32, 32))
        assert green > 230 > 40 > max(red, blue), (key, red, green, blue)
        assert "icc_profile" not in image.info
    assert result.colour is not None
    assert result.colour[3:5] > "e0"


def test_a_broken_profile_is_ignored(storage: FileStorage, ctx: Context):
    result = process(storage, ctx, encoded(Image.new("RGB", (64, 64), "red"), "PNG", icc_profile=b"nothing" * 40))
    assert stored(storage, result.clean).getpixel((5, 5)) == (255, 0, 0)


def moving_square(format: str) -> tuple[bytes, list[Image.Image]]:
    """A red square that moves over a transparent ground."""
    frames = []
    for number in range(4):
        frame = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
        frame.paste((255, 0, 0, 255), (number * 12, 10, number * 12 + 10, 20))
        frames.append(frame)
    options = {"disposal": 2} if format == "GIF" else {"lossless": True, "kmax": 1} if format == "WEBP" else {}
    out = io.BytesIO()
    frames[0].save(out, format, save_all=True, append_images=frames[1:], duration=100, loop=0, **options)
    return out.getvalue(), frames


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_a_transparent_animation_does_not_smear(storage: FileStorage, ctx: Context, format: str):
    content, frames = moving_square(format)
    variants = {
        name.lower(): {"width": 60, "format": name.lower(), "animated": True, "quality": 100}
        for name in ("GIF", "WEBP", "PNG")
    }
    result = process(storage, ctx, content, variants=variants)
    for key in (result.clean, *(variant.key for variant in result.variants.values())):
        image = stored(storage, key)
        assert image.n_frames == 4, key
        for number, expected in enumerate(frames):
            image.seek(number)
            picture = image.convert("RGBA")
            for x in range(5, 60, 12):
                assert (picture.getpixel((x, 15))[3] > 128) == (expected.getpixel((x, 15))[3] > 128), (key, number, x)
    assert {variant.frames for variant in result.variants.values()} == {4}


def test_how_often_an_animation_is_seen_survives_a_change_of_format(storage: FileStorage, ctx: Context):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    variants = {"moving": {"width": 40, "format": "webp", "animated": True}, "still": {"width": 40}}
    for loop, plays in ((0, 0), (2, 3), (None, 1)):
        options = {} if loop is None else {"loop": loop}
        content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50, **options)
        result = process(storage, ctx, content, variants=variants)
        assert stored(storage, result.variants["moving"].key).info["loop"] == plays
        assert stored(storage, result.clean).info.get("loop") == loop
        assert result.variants["still"].frames == 1


def heic(image: Image.Image) -> bytes:
    out = io.BytesIO()
    pillow_heif.from_pillow(image).save(out, quality=90)
    return out.getvalue()


@pytest.mark.parametrize(
    ("media_type", "clean"),
    [("image/heic", "jpg"), ("image/avif", "avif"), ("image/tiff", "png"), ("image/bmp", "png"), ("image/gif", "gif")],
)
def test_images_of_further_formats_are_read(storage: FileStorage, ctx: Context, media_type: str, clean: str):
    image = gradient()
    content = heic(image) if media_type == "image/heic" else encoded(image, media_type.partition("/")[2].upper())
    result = process(storage, ctx, content)
    assert result.media_type == media_type
    assert result.clean is not None
    assert result.clean.endswith(f"/clean.{clean}")
    for key in (result.clean, result.thumbnails[0].key):
        red, green, _ = stored(storage, key).convert("RGB").resize((320, 200)).getpixel((240, 50))
        assert abs(red - 191) < 25
        assert abs(green - 63) < 25
    assert result.blurhash is not None
    assert len(result.blurhash) == 28


def tool(*command: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    subprocess.run(command, check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize("extension", ["heic", "avif", "tif", "webp", "gif"])
def test_images_of_other_programs_are_read(storage: FileStorage, ctx: Context, tmp_path: Path, extension: str):
    source, target = tmp_path / "source.png", tmp_path / f"image.{extension}"
    gradient().save(source)
    program = {"heic": ("heif-enc", "-o", str(target)), "avif": ("avifenc", "-s", "8")}.get(extension, ("convert",))
    target_name = () if extension == "heic" else (str(target),)
    tool(*program, str(source), *target_name)
    result = process(storage, ctx, target.read_bytes())
    assert (result.width, result.height) == (320, 200)
    red, _, _ = stored(storage, result.thumbnails[0].key).convert("RGB").resize((320, 200)).getpixel((240, 50))
    assert abs(red - 191) < 25


@pytest.mark.parametrize(
    ("major", "compatible", "media_type"),
    [
        (b"heic", b"mif1heic", "image/heic"),
        (b"mif1", b"mif1heic", "image/heic"),
        (b"avif", b"mif1avif", "image/avif"),
        (b"isom", b"isomiso2avc1mp41", "video/mp4"),
        (b"qt  ", b"qt  ", "video/quicktime"),
        (b"M4A ", b"M4A mp42isom", "audio/mp4"),
        (b"none", b"none", "application/octet-stream"),
    ],
)
def test_pictures_and_films_of_one_container_are_told_apart(major: bytes, compatible: bytes, media_type: str):
    box = struct.pack(">I", 16 + len(compatible)) + b"ftyp" + major + b"\0\0\0\0" + compatible
    assert media_types.sniff(box + b"\0" * 100, complete=False) == media_type


def test_a_film_is_a_film(tmp_path: Path):
    film = tmp_path / "film.mp4"
    tool("ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", "testsrc=duration=1:size=64x64:rate=5", str(film))
    assert media_types.sniff(film.read_bytes()[: media_types.HEAD], complete=False) == "video/mp4"


def test_a_photo_of_108_megapixels_is_processed_by_default(storage: FileStorage, ctx: Context):
    result = process(storage, ctx, encoded(Image.new("L", (12_000, 9_000), 90), "JPEG"), thumbnails=(256,))
    assert (result.width, result.height) == (12_000, 9_000)
    assert (result.thumbnails[0].width, result.thumbnails[0].height) == (256, 192)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_marker_is_whole_and_one_that_lacks_pixels_is_not(
    storage: FileStorage, ctx: Context, progressive: bool
):
    content = encoded(gradient(), "JPEG", progressive=progressive, quality=90)
    expected = stored(storage, process(storage, ctx, content).clean).tobytes()
    for missing in (1, 2):
        result = process(storage, ctx, content[:-missing])
        assert stored(storage, result.clean).tobytes() == expected
        assert get(storage, str(result.original)) == content[:-missing]
    for missing in (100, len(content) // 3, len(content) // 2):
        with pytest.raises(Permanent, match=r"cut short|not a readable image"):
            process(storage, ctx, content[:-missing])


def test_variants_fit_fill_and_crop(storage: FileStorage, ctx: Context):
    image = Image.new("RGB", (400, 200), "blue")
    image.paste("red", (150, 50, 250, 150))
    variants = {
        "fit": {"width": 100, "height": 100},
        "fill": {"width": 100, "height": 100, "mode": "fill", "format": "png"},
        "crop": {"width": 100, "height": 100, "mode": "crop", "format": "png"},
        "wide": {"height": 50, "format": "jpeg", "quality": 50},
        "large": {"width": 1000, "format": "avif"},
    }
    result = process(storage, ctx, encoded(image, "PNG"), variants=variants)
    sizes = {name: (variant.width, variant.height) for name, variant in result.variants.items()}
    assert sizes == {"fit": (100, 50), "fill": (100, 100), "crop": (100, 100), "wide": (100, 50), "large": (400, 200)}
    for name, variant in result.variants.items():
        picture = stored(storage, variant.key)
        assert picture.size == sizes[name]
        assert variant.media_type == f"image/{picture.format.lower()}"
    assert stored(storage, result.variants["crop"].key).convert("RGB").getcolors() == [(10_000, (255, 0, 0))]
    assert stored(storage, result.variants["fill"].key).getpixel((10, 50)) == (0, 0, 255)
    assert result.colour == "#0000fe" or result.colour == "#0000ff"


def test_a_named_policy_changes_what_it_names_and_keeps_the_rest(storage: FileStorage, ctx: Context):
    put(storage, "in/photo", encoded(gradient(), "PNG"))
    uploads = {
        "max_bytes": 200_000,
        "thumbnails": [32],
        "avatars": {"thumbnails": [], "variants": {"small": {"width": 16, "height": 16, "mode": "fill"}}},
        "documents": {"media_types": ["application/pdf"]},
    }
    configured = settings(uploads=uploads)

    def run(policy: str | None) -> UploadProcessed:
        return process_upload(ProcessUpload(key="in/photo", policy=policy), ctx, storage, configured)

    avatar = run("avatars")
    assert avatar.thumbnails == ()
    assert (avatar.variants["small"].width, avatar.variants["small"].height) == (16, 16)
    assert avatar.variants["small"].key.startswith("uploads/avatars/sha256/")
    plain = run(None)
    assert [thumbnail.side for thumbnail in plain.thumbnails] == [32]
    assert plain.variants == {}
    assert run("avatars") == avatar
    with pytest.raises(Permanent, match="the content is image/png; accepted is application/pdf"):
        run("documents")
    with pytest.raises(
        Permanent, match=r"no policy 'none': penstock.toml has no \[uploads.none\]; there is: avatars, d"
    ):
        run("none")
    with pytest.raises(Permanent, match="max_bytes is 1000"):
        process_upload(
            ProcessUpload(key="in/photo", policy="small"),
            ctx,
            storage,
            settings(uploads={"small": {"max_bytes": 1000}}),
        )


@pytest.mark.parametrize(
    ("uploads", "message"),
    [
        ({"avatars": {"variants": {"a": {"mode": "fill", "width": 3}}}}, "needs both width and height"),
        ({"avatars": {"variants": {"a": {}}}}, "a variant needs width, height, or both"),
        ({"avatars": {"variants": {"a": {"width": 3, "format": "jpeg", "animated": True}}}}, "cannot be animated"),
        ({"avatars": {"variants": {"../a": {"width": 3}}}}, "lower-case letters"),
        ({"Avatars": {}}, "lower-case letters"),
        ({"sha256": {}}, "folder of the results"),
        ({"avatars": {"max_byte": 3}}, "avatars.max_byte"),
        ({"max_byte": 3}, "max_byte"),
    ],
)
def test_a_policy_that_cannot_work_is_refused_by_its_settings(uploads: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        settings(uploads=uploads)
