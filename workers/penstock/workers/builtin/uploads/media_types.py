"""Media types detected from the bytes alone: names and declared types can be wrong."""

from __future__ import annotations

import csv
import re

HEAD = 64 * 1024
"""Bytes of the beginning that `sniff` looks at."""

EXTENSIONS = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/gif": "gif",
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
}
_SIGNATURES = (
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"%PDF-\d"), "application/pdf"),
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


def extension(media_type: str) -> str:
    return EXTENSIONS.get(media_type, "bin")


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
