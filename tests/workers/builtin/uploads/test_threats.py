"""PDFs that are broken or encrypted, polyglots, and viruses."""

from __future__ import annotations

import io
import json
import os
import shutil
import socketserver
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pypdf
import pytest
from PIL import Image
from support.builtin.tools import get, put, settings
from support.polling import until

from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.uploads import ProcessUpload, UploadProcessed
from penstock.workers import Context, Permanent
from penstock.workers.builtin.uploads.handler import process_upload
from penstock.workers.builtin.uploads.scanning import ScannerUnavailable, scan

EICAR = "X5O!P%@AP[4\\PZX54(P^)7CC)7}$" + "EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
"""The test file of eicar.org. In two pieces, so that a scanner lets this file alone."""


def pdf(pages: int = 2, user: str | None = None, owner: str | None = None) -> bytes:
    writer = pypdf.PdfWriter()
    for _ in range(pages):
        writer.add_blank_page(72, 72)
    if owner is not None:
        writer.encrypt(user or "", owner, algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(out, "PNG")
    return out.getvalue()


def archive(front: bytes = b"", comment: bytes = b"") -> bytes:
    out = io.BytesIO(front)
    out.seek(0, io.SEEK_END)
    with zipfile.ZipFile(out, "a") as file:
        file.writestr("Main.class", b"code")
        file.comment = comment
    return out.getvalue()


def process(storage: FileStorage, ctx: Context, content: bytes, **uploads: object) -> UploadProcessed:
    put(storage, "in/file", content)
    return process_upload(ProcessUpload(key="in/file"), ctx, storage, settings(uploads=uploads))


def test_a_pdf_has_its_number_of_pages(storage: FileStorage, ctx: Context):
    result = process(storage, ctx, pdf())
    assert (result.pages, result.encrypted) == (2, False)


def test_a_pdf_that_needs_a_password_is_refused_or_marked(storage: FileStorage, ctx: Context):
    content = pdf(user="open sesame", owner="owner")
    with pytest.raises(Permanent, match="needs a password; encrypted_pdfs"):
        process(storage, ctx, content)
    assert storage.find("uploads") is None
    result = process(storage, ctx, content, encrypted_pdfs=True)
    assert (result.pages, result.encrypted) == (None, True)
    with pytest.raises(Permanent, match="needs a password"):  # also where an earlier run has kept it
        process(storage, ctx, content)


def test_a_pdf_with_restrictions_alone_is_read(storage: FileStorage, ctx: Context):
    result = process(storage, ctx, pdf(pages=3, owner="owner"))
    assert (result.pages, result.encrypted) == (3, False)


@pytest.mark.parametrize(
    "content", [b"%PDF-1.7\n", b"%PDF-1.7\n" + b"\xff\x00 nothing" * 999, pdf(pages=0), pdf()[:200]]
)
def test_a_pdf_that_no_one_can_read_is_refused(storage: FileStorage, ctx: Context, content: bytes):
    with pytest.raises(Permanent, match="not a readable PDF"):
        process(storage, ctx, content)


@pytest.mark.parametrize(
    ("content", "types"),
    [
        (archive(png()), "image/png and application/zip"),
        (archive(png(), comment=b"a comment"), "image/png and application/zip"),
        (archive(png()) + b"more", "image/png and application/zip"),
        (archive(pdf()), "application/pdf and application/zip"),
        (png()[:33] + b"%PDF-1.4" + png()[33:], "image/png and application/pdf"),
        (b"GIF89a/*" + b"\0" * 40 + b"*/<script>alert(1)</script>", "image/gif and text/html"),
    ],
)
def test_a_file_of_two_types_is_refused_by_both(storage: FileStorage, ctx: Context, content: bytes, types: str):
    with pytest.raises(Permanent, match=f"the content is {types} at once"):
        process(storage, ctx, content)


def test_bytes_that_only_look_like_an_archive_are_none(storage: FileStorage, ctx: Context):
    assert process(storage, ctx, png() + b"PK\x05\x06" + b"\xff" * 18).media_type == "image/png"


class _Clamd(socketserver.StreamRequestHandler):
    """The protocol of clamd, as its manual page has it: for machines without a real one."""

    def handle(self) -> None:
        content = b""
        assert self.rfile.read(10) == b"zINSTREAM\0"
        while size := int.from_bytes(self.rfile.read(4), "big"):
            content += self.rfile.read(size)
            if len(content) > 100_000:
                self.wfile.write(b"INSTREAM size limit exceeded. ERROR\0")
                return
        self.wfile.write(b"stream: Eicar-Signature FOUND\0" if EICAR.encode() in content else b"stream: OK\0")


@contextmanager
def _protocol() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Clamd) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"tcp://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@contextmanager
def _real(folder: Path) -> Iterator[str]:
    """A clamd whose only signature is EICAR's, so that nothing is fetched."""
    if shutil.which("clamd") is None:
        pytest.skip("clamd is not installed")
    database = folder / "database"
    database.mkdir()
    (database / "test.ndb").write_text(f"Eicar-Signature:0:0:{EICAR.encode().hex()}\n")
    socket_path, log = folder / "clamd.ctl", folder / "clamd.log"
    (folder / "clamd.conf").write_text(
        f"LocalSocket {socket_path}\nDatabaseDirectory {database}\nForeground yes\nLogFile {log}\n"
        f"TemporaryDirectory {folder}\nStreamMaxLength 100K\nUser {_user()}\n"
    )
    for path in (folder, database, *database.iterdir(), folder / "clamd.conf"):
        path.chmod(0o755)
    process = subprocess.Popen(
        ["clamd", "-c", str(folder / "clamd.conf")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        until(
            socket_path.exists,
            "clamd's socket",
            unless=lambda: process.poll() is not None and f"clamd ended: {process.communicate()[0]!r}",
        )
        yield f"unix:{socket_path}"
    finally:
        process.kill()
        process.communicate()


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture(scope="module", params=["protocol", "clamd"])
def clamd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = _protocol() if request.param == "protocol" else _real(tmp_path_factory.mktemp("clamd"))
    with server as url:
        yield url


def test_a_virus_is_moved_into_the_quarantine(storage: FileStorage, ctx: Context, clamd: str):
    with pytest.raises(
        Permanent, match=r"in/file: has the virus Eicar-Signature.*; it was moved to quarantine/"
    ) as caught:
        process(storage, ctx, EICAR.encode(), clamd=clamd)
    key = str(caught.value).rpartition(" ")[2]
    assert get(storage, key) == EICAR.encode()
    note: dict[str, Any] = json.loads(get(storage, f"{key}.json"))
    assert note["virus"].startswith("Eicar-Signature")
    assert (note["key"], note["job"]) == ("in/file", ctx.job_id)
    assert storage.find("in/file") is None
    assert not (storage.folder / "uploads").exists()


def test_an_upload_without_a_virus_is_processed(storage: FileStorage, ctx: Context, clamd: str):
    assert process(storage, ctx, png(), clamd=clamd).width == 40


def test_a_file_that_is_too_large_for_the_scanner_is_not_let_through(storage: FileStorage, ctx: Context, clamd: str):
    with pytest.raises(Permanent, match=r"size limit exceeded.*raise its StreamMaxLength"):
        process(storage, ctx, b"text " * 200_000, clamd=clamd)


def test_a_scanner_that_is_down_is_an_outage(storage: FileStorage, ctx: Context, tmp_path: Path):
    for url in ("tcp://127.0.0.1:9", f"unix:{tmp_path}/none"):
        with pytest.raises(ScannerUnavailable, match="check `clamd` of"):
            process(storage, ctx, png(), clamd=url)
    assert not (storage.folder / "uploads").exists()


def test_a_scanner_that_breaks_off_is_an_outage(ctx: Context, tmp_path: Path):
    class Silent(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(100)

    (tmp_path / "file").write_bytes(b"x")
    with socketserver.TCPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(ScannerUnavailable):
            scan(tmp_path / "file", f"tcp://127.0.0.1:{server.server_address[1]}", ctx)
        thread.join()


@pytest.mark.parametrize("url", ["127.0.0.1:3310", "http://x", "tcp://", "unix:clamd.ctl"])
def test_a_url_that_names_no_scanner_is_refused_by_the_settings(url: str):
    with pytest.raises(ValueError, match="write tcp://host:3310 or unix:"):
        settings(uploads={"clamd": url})
