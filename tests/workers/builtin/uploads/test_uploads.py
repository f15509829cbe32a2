from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from support.builtin.tools import get, listing, put, settings

from penstock.producers.storage import FileStorage, make_storage
from penstock.schemas.builtin.uploads import ProcessUpload
from penstock.workers import Context, JobCancelled, Permanent
from penstock.workers.builtin.uploads.handler import process_upload

PDF = (
    b"%PDF-1.4\n"
    b"1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 72 72]>>endobj\n"
    b"xref\n0 4\n0000000000 65535 f \n0000000009 00000 n \n0000000052 00000 n \n0000000101 00000 n \n"
    b"trailer<</Size 4/Root 1 0 R>>\nstartxref\n162\n%%EOF\n"
)
GPS = 0x8825


def photo(format: str = "JPEG", size: tuple[int, int] = (640, 320)) -> bytes:
    """Lies on its side (orientation 6), its left half red; with the place and the camera in its metadata."""
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0] // 2, size[1]))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(GPS).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)})
    out = io.BytesIO()
    options = {"comment": b"SecretComment", "xmp": b"<x:xmpmeta>SecretXmp</x:xmpmeta>"} if format == "JPEG" else {}
    image.save(out, format, exif=exif, **options)
    return out.getvalue()


def animated(format: str, frames: int = 3, size: tuple[int, int] = (40, 30)) -> bytes:
    images = [Image.new("RGB", size, (80 * number % 256, number, 0)) for number in range(frames)]
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    options = {"comment": b"SecretComment"} if format == "GIF" else {"exif": exif}
    durations = [70 + 10 * number for number in range(frames)]
    images[0].save(out, format, save_all=True, append_images=images[1:], duration=durations, loop=0, **options)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A few bytes that claim to be a large image."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def process(storage, ctx: Context, content: bytes, key: str = "in/file", **policy: object):
    put(storage, key, content)
    return process_upload(ProcessUpload(key=key), ctx, storage, settings(uploads=policy))


def open_image(storage, key: str) -> Image.Image:
    image = Image.open(io.BytesIO(get(storage, key)))
    image.load()
    return image


def test_a_photo_becomes_upright_and_forgets_where_it_was_taken(storage: FileStorage, ctx: Context):
    content = photo()
    result = process(storage, ctx, content, thumbnails=(64, 256))
    digest = hashlib.sha256(content).hexdigest()
    assert result.sha256 == digest
    assert (result.media_type, result.size) == ("image/jpeg", len(content))
    assert (result.width, result.height, result.frames) == (320, 640, 1)
    base = f"uploads/sha256/{digest[:2]}/{digest[2:4]}/{digest}"
    assert (result.original, result.clean) == (f"{base}/original.jpg", f"{base}/clean.jpg")
    assert get(storage, f"{base}/original.jpg") == content
    assert [(t.key, t.width, t.height) for t in result.thumbnails] == [
        (f"{base}/thumb-64.webp", 32, 64),
        (f"{base}/thumb-256.webp", 128, 256),
    ]
    assert b"SecretCamera" in content
    assert b"SecretXmp" in content
    for key in (result.clean, *(t.key for t in result.thumbnails)):
        thumbnail = get(storage, key)
        assert b"Secret" not in thumbnail
        assert b"Exif" not in thumbnail
        image = open_image(storage, key)
        assert not image.getexif()
        red, _, blue = image.convert("RGB").getpixel((image.width // 2, image.height // 8))
        assert red > 200 > 60 > blue  # orientation 6: the left half is now on top
    assert json.loads(get(storage, result.metadata)) == result.model_dump(mode="json")


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_photos_of_other_formats_are_cleaned_and_turned_too(storage: FileStorage, ctx: Context, format: str):
    result = process(storage, ctx, photo(format))
    assert result.media_type == f"image/{format.lower()}"
    assert (result.width, result.height) == (320, 640)
    image = open_image(storage, result.clean)
    assert (image.format, image.size) == (format, (320, 640))
    assert not image.getexif()
    assert b"SecretCamera" not in get(storage, result.clean)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animated_image_stays_animated(storage: FileStorage, ctx: Context, format: str):
    assert b"Secret" in animated(format)
    result = process(storage, ctx, animated(format))
    image = open_image(storage, result.clean)
    assert (result.frames, image.n_frames) == (3, 3)
    durations = []
    for number in range(3):
        image.seek(number)
        image.load()
        durations.append(image.info["duration"])
    assert durations == [70, 80, 90]
    assert image.info.get("loop") == 0
    assert b"Secret" not in get(storage, result.clean)
    assert [t.width for t in result.thumbnails] == [40, 40]  # never enlarged


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_images_of_every_mode_have_thumbnails(storage: FileStorage, ctx: Context, mode: str):
    out = io.BytesIO()
    Image.new(mode, (300, 200)).save(out, "PNG")
    result = process(storage, ctx, out.getvalue(), thumbnails=(100,))
    assert open_image(storage, result.thumbnails[0].key).size == (100, 67)
    assert open_image(storage, result.clean).size == (300, 200)


def test_a_cmyk_jpeg_has_thumbnails(storage: FileStorage, ctx: Context):
    out = io.BytesIO()
    Image.new("CMYK", (300, 200)).save(out, "JPEG")
    assert len(process(storage, ctx, out.getvalue()).thumbnails) == 2


def test_transparency_survives(storage: FileStorage, ctx: Context):
    out = io.BytesIO()
    Image.new("RGBA", (30, 20), (255, 0, 0, 0)).save(out, "PNG")
    result = process(storage, ctx, out.getvalue())
    for key in (result.clean, result.thumbnails[0].key):
        assert open_image(storage, key).convert("RGBA").getpixel((5, 5))[3] == 0


def test_a_pdf_is_kept_as_it_is(storage: FileStorage, ctx: Context):
    result = process(storage, ctx, PDF, key="in/letter.png")
    assert result.media_type == "application/pdf"
    assert result.original is not None
    assert result.original.endswith("/original.pdf")
    assert get(storage, result.original) == PDF
    assert (result.clean, result.thumbnails, result.width) == (None, (), None)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name;price\n\xc3\xa4pfel;1\nbirnen;2\n", "text/csv"),
        (b'a,b\r\n"x, y",2\r\n', "text/csv"),
        (b"\xef\xbb\xbfa\tb\n1\t2\n", "text/csv"),
        (b"Dear all,\n\nnothing is separated here.\n", "text/plain"),
        (b"BM,GIF87,MZ\n", "text/plain"),
        ("ö".encode() * 50_000, "text/plain"),  # a character crosses the end of the bytes that are sniffed
        (b"x" + "ö".encode() * 50_000, "text/plain"),
    ],
)
def test_text_and_csv_are_distinguished_by_content(storage: FileStorage, ctx: Context, content: bytes, expected: str):
    assert process(storage, ctx, content, key="in/file.jpg").media_type == expected


@pytest.mark.parametrize(
    ("key", "content", "expected"),
    [
        ("photo.jpg", b"<!DOCTYPE html><script>alert(1)</script>", "text/html"),
        ("photo.jpg", b" \n<script >alert(1)</script>", "text/html"),
        ("photo.png", b'<?xml version="1.0"?><svg onload="alert(1)"/>', "image/svg+xml"),
        ("list.csv", b"MZ\x90\x00\x03\x00\x00\x00\x04\x00", "application/octet-stream"),
        ("letter.pdf", b"PK\x03\x04\x14\x00\x00\x00\x08\x00rest", "application/zip"),
        ("notes.txt", b"abc\x00def", "application/octet-stream"),
        ("notes.txt", b"caf\xe9 in Latin-1", "application/octet-stream"),
    ],
)
def test_a_lie_about_the_kind_of_file_is_refused_by_name(
    storage: FileStorage, ctx: Context, key: str, content: bytes, expected: str
):
    with pytest.raises(Permanent, match="the content is") as caught:
        process(storage, ctx, content, key=key)
    assert expected in str(caught.value)
    assert key in str(caught.value)
    assert storage.find("uploads") is None


def test_a_png_named_pdf_is_a_png(storage: FileStorage, ctx: Context):
    result = process(storage, ctx, photo("PNG"), key="in/contract.pdf")
    assert result.media_type == "image/png"
    with pytest.raises(Permanent, match="the content is image/png; accepted is application/pdf"):
        process(storage, ctx, photo("PNG"), key="in/contract.pdf", media_types=("application/pdf",))


def test_a_single_upload_may_have_a_stricter_policy(storage: FileStorage, ctx: Context):
    put(storage, "portrait", PDF)
    with pytest.raises(Permanent, match=r"accepted is image/\*"):
        process_upload(ProcessUpload(key="portrait", media_types=("image/*",)), ctx, storage, settings())
    with pytest.raises(Permanent, match="max_bytes is 100"):
        process_upload(ProcessUpload(key="portrait", max_bytes=100), ctx, storage, settings())
    with pytest.raises(Permanent, match="max_bytes is 50"):
        process_upload(ProcessUpload(key="portrait", max_bytes=100), ctx, storage, settings(uploads={"max_bytes": 50}))


def test_a_wildcard_of_one_upload_does_not_widen_the_policy(storage: FileStorage, ctx: Context):
    put(storage, "x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    with pytest.raises(Permanent, match="image/svg"):
        process_upload(ProcessUpload(key="x.svg", media_types=("image/*",)), ctx, storage, settings())


def test_text_that_turns_binary_later_is_refused(storage: FileStorage, ctx: Context):
    with pytest.raises(Permanent, match="not UTF-8 text throughout"):
        process(storage, ctx, b"plain text\n" * 100_000 + b"\xff\xfe\x00")


def test_reading_stops_at_the_limit(storage: FileStorage, ctx: Context):
    with pytest.raises(Permanent, match="max_bytes is 1000, found more"):
        process(storage, ctx, b"x" * 10_000_000, max_bytes=1000)


def test_an_empty_object_and_a_missing_one_are_refused(storage: FileStorage, ctx: Context):
    with pytest.raises(Permanent, match="empty"):
        process(storage, ctx, b"")
    with pytest.raises(Permanent, match="no object 'nowhere'"):
        process_upload(ProcessUpload(key="nowhere"), ctx, storage, settings())
    with pytest.raises(Permanent, match=r"'\.\./x'"):
        process_upload(ProcessUpload(key="../x"), ctx, storage, settings())


@pytest.mark.parametrize("size", [(7000, 20_000), (20_000, 20_000), (65_000, 65_000)])
def test_a_decompression_bomb_is_not_decoded(storage: FileStorage, ctx: Context, size: tuple[int, int]):
    with pytest.raises(Permanent, match="max_pixels is 120000000"):
        process(storage, ctx, png_header(*size))


def test_a_bomb_of_frames_is_not_decoded(storage: FileStorage, ctx: Context):
    with pytest.raises(Permanent, match="max_pixels is 100000, found 40 × 30 pixels in"):
        process(storage, ctx, animated("GIF", frames=60), max_pixels=100_000)


def test_a_bomb_of_text_in_an_image_is_refused(storage: FileStorage, ctx: Context):
    data = b"Comment\0\0" + zlib.compress(b"x" * 80_000_000, 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    small = photo("PNG")
    with pytest.raises(Permanent, match="not a readable image"):
        process(storage, ctx, small[:33] + chunk + small[33:])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_broken_image_is_refused_and_leaves_nothing(storage: FileStorage, ctx: Context, format: str):
    content = photo(format) if format != "GIF" else animated("GIF")
    for broken in (content[: len(content) // 2], content[:20], content[:12] + b"\xff" * 500):
        with pytest.raises(Permanent, match=r"not a readable image|accepted is|too large"):
            process(storage, ctx, broken)
    assert not (storage.folder / "uploads").exists()


def test_a_second_run_writes_nothing_and_returns_the_same(storage: FileStorage, ctx: Context):
    first = process(storage, ctx, photo())
    before = listing(storage.folder / "uploads")
    assert process_upload(ProcessUpload(key="in/file"), ctx, storage, settings()) == first
    assert listing(storage.folder / "uploads") == before
    assert process(storage, ctx, photo(), key="another/name").metadata == first.metadata
    assert listing(storage.folder / "uploads") == before


def test_files_that_a_crash_left_out_are_made_by_the_next_attempt(storage: FileStorage, ctx: Context):
    first = process(storage, ctx, photo())
    before = {key: get(storage, f"uploads/{key}") for key in listing(storage.folder / "uploads")}
    storage.delete(first.thumbnails[0].key)
    storage.delete(first.metadata)
    assert process(storage, ctx, photo()) == first
    assert {key: get(storage, f"uploads/{key}") for key in before} == before


def test_changed_settings_add_the_missing_thumbnails(storage: FileStorage, ctx: Context):
    process(storage, ctx, photo(), thumbnails=(64,))
    result = process(storage, ctx, photo(), thumbnails=(64, 32))
    assert [thumbnail.side for thumbnail in result.thumbnails] == [32, 64]


def test_the_original_of_an_image_need_not_be_kept(storage: FileStorage, ctx: Context):
    result = process(storage, ctx, photo(), keep_original=False)
    assert result.original is None
    files = listing(storage.folder / "uploads")
    assert sorted(Path(name).name for name in files) == [
        "clean.jpg",
        "metadata.json",
        "thumb-1024.webp",
        "thumb-256.webp",
    ]


def test_a_cancelled_job_stops_while_it_reads(storage: FileStorage, ctx: Context):
    ctx.cancel()
    with pytest.raises(JobCancelled):
        process(storage, ctx, photo())


def test_uploads_work_on_s3(s3_url: str, ctx: Context):
    storage = make_storage(s3_url)
    first = process(storage, ctx, photo())
    assert process(storage, ctx, photo()) == first
    stat = storage.find(first.thumbnails[0].key)
    assert stat is not None
    assert stat.media_type == "image/webp"
    storage.close()
