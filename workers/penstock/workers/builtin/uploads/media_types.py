"""Media types detected from the bytes alone: names and declared types can be wrong."""

from __future__ import annotations

import csv
import re
from pathlib import Path

HEAD = 64 * 1024
"""Bytes of the beginning that `sniff` looks at."""

EXTENSIONS = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/avif": "avif",
    "image/heic": "heic",
    "image/tiff": "tif",
    "image/bmp": "bmp",
    "application/pdf": "pdf",
    "text/plain": "txt",
    "text/csv": "csv",
    "text/html": "html",
    "application/xml": "xml",
    "image/svg+xml": "svg",
    "application/zip": "zip",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "pptx",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "audio/mp4": "m4a",
}
_SIGNATURES = (
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"%PDF-\d"), "application/pdf"),
    (re.compile(rb"II\x2a\0|MM\0\x2a"), "image/tiff"),
    (re.compile(rb"BM.{8}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL), "image/bmp"),
)
# ISO base media files: one box format for pictures, sound and films (ISO/IEC 14496-12). The brands say which it is.
_BRANDS = (
    ({b"avif", b"avis"}, "image/avif"),
    ({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}, "image/heic"),
    ({b"qt  "}, "video/quicktime"),
    ({b"M4A ", b"M4B "}, "audio/mp4"),
    ({b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"M4V ", b"M4VP", b"dash"}, "video/mp4"),
)
_OFFICE = ((b"word/", "docx"), (b"xl/", "xlsx"), (b"ppt/", "pptx"))
_BY_EXTENSION = {extension: name for name, extension in EXTENSIONS.items()}
# What a browser takes for HTML: https://mimesniff.spec.whatwg.org/#identifying-a-resource-with-an-unknown-mime-type
_HTML = re.compile(
    rb"<(?:!doctype html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p)[\s>/]|<!--", re.I
)
_SVG = re.compile(rb"<svg[\s>:]", re.I)
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")


def sniff(head: bytes, *, complete: bool) -> str:
    """The media type of content; `application/octet-stream` where nothing is known.

    Arguments:
        head: its first bytes, up to HEAD.
        complete: whether that is all of it.
    """
    for signature, name in _SIGNATURES:
        if signature.match(head):
            return name
    if head[4:8] == b"ftyp":
        return _base_media(head)
    if is_text(head, complete=complete):
        return _text_type(head)
    if head.startswith(b"PK\x03\x04"):
        office = (_BY_EXTENSION[kind] for folder, kind in _OFFICE if folder in head)
        return next(office, "application/zip") if b"[Content_Types].xml" in head else "application/zip"
    import puremagic  # imported lazily: only few uploads need its memory

    try:
        return puremagic.magic_string(head)[0].mime_type or "application/octet-stream"
    except (puremagic.PureError, ValueError, IndexError):
        return "application/octet-stream"


def is_text(piece: bytes, *, complete: bool) -> bool:
    """Whether bytes are UTF-8 without the control characters of binary content. A cut may fall inside a character."""
    if not piece or _CONTROL.search(piece):
        return False
    try:
        piece.decode()
    except UnicodeDecodeError as error:
        return not complete and error.start > len(piece) - 4 and error.reason == "unexpected end of data"
    return True


def accepted(media_type: str, allowed: tuple[str, ...]) -> bool:
    """Whether a list such as `("image/*", "text/plain")` takes a media type."""
    names = {media_type, media_type.partition("/")[0] + "/*"}
    if media_type == "text/csv":
        names.add("text/plain")  # no bytes tell them apart for sure
    return not names.isdisjoint(allowed)


def second_type(path: Path, media_type: str) -> str | None:
    """The other type of a polyglot, a file that is valid as two; None: no other is seen.

    A picture or PDF that is also an archive or a page passes the checks for one, and is opened as the other.
    """
    if media_type.partition("/")[0] not in ("image", "audio", "video") and media_type != "application/pdf":
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(1024)
        start = max(0, size - 65_557)  # of an archive's last record, whose comment has at most 65,535 bytes
        file.seek(start)
        tail = file.read()
        record = tail.rfind(b"PK\x05\x06")
        if record >= 0 and len(tail) - record >= 22:
            directory = start + record - int.from_bytes(tail[record + 12 : record + 16], "little")
            if directory >= 0:
                file.seek(directory)
                if file.read(4) in (b"PK\x01\x02", b"PK\x05\x06"):
                    return "application/zip"
    if media_type != "application/pdf" and re.search(rb"%PDF-\d", head):
        return "application/pdf"
    return "text/html" if re.search(rb"<(?:script|html|iframe|body)[\s>]", head, re.I) else None


def extension(media_type: str) -> str:
    return EXTENSIONS.get(media_type, "bin")


def _base_media(head: bytes) -> str:
    """By the major brand, then by the compatible ones: `mif1`, a picture of any codec, is the major one of many."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[start : start + 4] for start in range(16, size - 3, 4))]
    for brand in brands:
        for names, media_type in _BRANDS:
            if brand in names:
                return media_type
    return "application/octet-stream"


def _text_type(head: bytes) -> str:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _SVG.match(start) or (start.startswith(b"<?xml") and _SVG.search(start[:4096])):
        return "image/svg+xml"
    if _HTML.match(start):
        return "text/html"
    if start.startswith(b"<?xml"):
        return "text/html" if _HTML.search(start[:4096]) else "application/xml"
    return "text/csv" if _is_csv(start.decode(errors="replace")) else "text/plain"


def _is_csv(text: str) -> bool:
    """Two rows or more, of the same number of cells, two or more. The last row may be cut and does not count."""
    lines = text.splitlines()[:50]
    for delimiter in ",;\t|":
        try:
            widths = [len(row) for row in csv.reader(lines, delimiter=delimiter) if row]
        except csv.Error:
            continue
        if len(widths) >= 2 and widths[0] >= 2 and len(set(widths[: max(2, len(widths) - 1)])) == 1:
            return True
    return False
